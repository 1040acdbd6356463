"""`refseg label`: a folder of photographs and a file of expressions in, a COCO file out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refseg.cli.arguments import PHOTO_SUFFIXES
from refseg.cli.files import ensure_writable
from refseg.cli.segmenting import SHIPPED, Device, Model, Threshold, load_model
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.annotation.coco import Counts
    from refseg.annotation.journal import Record
    from refseg.annotation.label import Skipped


class EngineName(StrEnum):
    """Where the photographs are computed."""

    LOCAL = "local"
    RAY = "ray"


def label(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs, with the folders in it.")],
    expressions: Annotated[
        Path,
        typer.Option(help="What to look for: a text, one expression a line, or a CSV (see below)."),
    ],
    out: Annotated[Path, typer.Option(help="The COCO file to write, for example coco.json.")],
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out answers whose score is lower.")] = 0.0,
    found: Annotated[
        bool, typer.Option("--found", help="Leave out what the model believes is not in the photograph.")
    ] = False,
    engine: Annotated[
        EngineName, typer.Option(help="local: here, one after the other; ray: a process per core or GPU, or a cluster.")
    ] = EngineName.LOCAL,
    model: Model = SHIPPED,
    device: Device = "auto",
    threshold: Threshold = None,
) -> None:
    """Labels a folder of photographs into a COCO file.

    \b
    refseg label photos --expressions things.txt --out coco.json
    refseg label photos --expressions things.csv --out coco.json --min-score 0.5
    RAY_ADDRESS=head:6379 refseg label photos --expressions things.txt --out coco.json --engine ray

    A CSV has the columns expression and category, several expressions to a category if need be; its first line may
    name the columns, and then also photo, a file of the folder in which alone to look.

    Every answer is kept beside the output (coco.labels.jsonl) as soon as it is there: after an interruption the same
    line goes on where it was, and another --min-score costs no computing.

    Exit code 0: all done; 1: some photographs could not be read and were skipped; 2: nothing could be done.
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
    segmenter = load_model(model, device, threshold)
    if found and not (segmenter.calibration and segmenter.calibration.found):
        raise RefsegError("this model does not say what it has found; leave --found out, or see refseg calibrate")
    made_by = identity(segmenter)
    compute = one_after_the_other(segmenter, photos)
    if engine is EngineName.RAY:
        from refseg.annotation.ray import over_ray

        compute = over_ray(partial(load_model, model, device, threshold), photos, made_by, device != "cpu")
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
    """The photographs in a folder and below, relative to it; hidden files and folders are passed over."""
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
    """Shows a bar and what was skipped, which it counts."""
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
