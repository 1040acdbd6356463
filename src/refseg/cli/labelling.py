"""`refseg label`: a folder of photographs and a file of expressions in, a COCO file out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refseg.cli.arguments import PHOTO_SUFFIXES, SHIPPED, Device, Model, Threads, Threshold, load_model
from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.annotation.coco import Counts
    from refseg.annotation.journal import Record
    from refseg.annotation.label import Skipped


def label(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs. Folders inside it are read too.")],
    expressions: Annotated[
        Path,
        typer.Option(help="What to look for: a text file with one expression per line, or a CSV (see below)."),
    ],
    out: Annotated[Path, typer.Option(help="The COCO file to write, for example coco.json.")],
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out answers with a lower score.")] = 0.0,
    found: Annotated[
        bool, typer.Option("--found", help="Leave out answers that the model believes are not in the photograph.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Use Ray: one process per core or GPU, on this machine or on a cluster.")
    ] = False,
    model: Model = SHIPPED,
    device: Device = "auto",
    threshold: Threshold = None,
    threads: Threads = None,
) -> None:
    """Labels a folder of photographs and writes one COCO file.

    \b
    refseg label photos --expressions things.txt --out coco.json
    refseg label photos --expressions things.csv --out coco.json --min-score 0.5
    refseg label photos --expressions things.txt --out coco.json --ray

    A CSV has the columns expression and category. Several expressions may share a category.
    Its first line may name the columns. A column photo then limits a line to that file of the folder.

    Finished photographs are kept next to the output, in coco.labels.jsonl.
    After an interruption, the same command continues where it stopped.
    Another --min-score computes nothing again.

    The exit code is 1 if some photographs could not be read and were skipped, and 2 if nothing could be done.
    """
    names = _photographs(photos)
    ensure_writable(out.parent)
    if out.suffix.lower() != ".json" or out.is_dir():
        raise RefsegError(f"{out} is no name for a COCO file; end it in .json")

    from refseg.annotation.coco import Keep, write_coco
    from refseg.annotation.expressions import plan, read_expressions
    from refseg.annotation.journal import Journal
    from refseg.annotation.label import identity, one_after_the_other, remaining
    from refseg.annotation.label import label as label_photographs

    wanted = plan(read_expressions(expressions), names)
    segmenter = load_model(model, device, threshold, threads)
    if found and not (segmenter.calibration and segmenter.calibration.found):
        raise RefsegError("this model does not say what it has found; leave --found out, or see refseg calibrate")
    made_by = identity(segmenter)
    compute = one_after_the_other(segmenter, photos)
    if ray:
        from refseg.annotation.ray import over_ray

        load = partial(load_model, model, device, threshold, threads or 1)  # a process per core
        compute = over_ray(load, photos, made_by, device != "cpu")
    with Journal(out.with_suffix(".labels.jsonl"), made_by) as journal:
        tasks = remaining(wanted, photos, journal)
        skipped = _follow(label_photographs(tasks, journal, compute), len(wanted), len(wanted) - len(tasks))
        if skipped == len(wanted):
            raise typer.Exit(2)
        counts = write_coco(out, wanted, journal, made_by["model"], Keep(min_score, found))
    typer.echo(_described(out, counts, skipped))
    if skipped:
        raise typer.Exit(1)


def _photographs(folder: Path) -> list[str]:
    """The photographs in a folder and below it, relative to it. Hidden files and folders are left out."""
    if not folder.is_dir():
        raise RefsegError(f"there is no folder {folder}; give the folder that holds the photographs")
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder)
        names += [
            (inside / file).as_posix()
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in PHOTO_SUFFIXES
        ]
    if not names:
        raise RefsegError(f"the folder {folder} holds no photographs ({' '.join(sorted(PHOTO_SUFFIXES))})")
    return names


def _follow(outcomes: Iterable[Record | Skipped], total: int, finished: int) -> int:
    """Shows a progress bar and what was skipped. Returns how many were skipped."""
    from tqdm import tqdm

    from refseg.annotation.label import Skipped

    skipped = 0
    for outcome in tqdm(outcomes, unit="photo", total=total, initial=finished, disable=not sys.stderr.isatty()):
        if isinstance(outcome, Skipped):
            skipped += 1
            tqdm.write(f"refseg: {outcome.reason}", file=sys.stderr)
    return skipped


def _described(out: Path, counts: Counts, skipped: int) -> str:
    left = f"; {skipped} skipped" if skipped else ""
    return (
        f"{out}: {counts.annotations} annotations of {counts.categories} categories "
        f"in {counts.photographs} photographs{left}"
    )
