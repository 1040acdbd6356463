"""`refseg evaluate`, `score`, `report` and `calibrate`: how good a model is, and what its own score means."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refseg.cli.arguments import Device, ModelArgument, Threads, load_model
from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError
from refseg.files import whole

if TYPE_CHECKING:
    from refseg.evaluation.report import Report


class ProtocolName(StrEnum):
    """The names of `refseg.evaluation.protocols.PROTOCOLS`, spelled out so that --help imports nothing heavy."""

    NATIVE = "native"
    SHNET = "shnet"
    LAVT = "lavt"
    CRIS = "cris"
    GRES = "gres"


class Format(StrEnum):
    """How a table is printed."""

    MARKDOWN = "markdown"
    CSV = "csv"


Data = Annotated[
    list[str],
    typer.Option(
        help="A table.jsonl, a COCO-format instances.json, DATASET:SPLIT such as unc:val, or scenes:COUNT. "
        "Repeat it to join several."
    ),
]
ProtocolOption = Annotated[ProtocolName, typer.Option(help="The scoring rules; docs/protocols.md explains each.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Also write the report to this JSON file, for example report.json.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]
_SHOWN = 5
"""Problems that are printed; the report lists all of them."""
Seed = Annotated[int, typer.Option(min=0, help="The seed of generated expressions. A table is read as it is.")]


def evaluate(
    model: ModelArgument,
    data: Data,
    protocol: ProtocolOption = ProtocolName.NATIVE,
    photos: Annotated[
        int | None,
        typer.Option(min=1, help="Score only this many photographs, spread evenly over the data.", show_default=False),
    ] = None,
    seed: Seed = 0,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Also draw a report card into this folder: report.json, card.png, contact.jpg.", show_default=False
        ),
    ] = None,
    swaps: Annotated[
        bool,
        typer.Option("--swaps", help="Also exchange left and right in each sentence, and count the masks that move."),
    ] = False,
    crf: Annotated[
        bool, typer.Option("--crf", help="Refine each mask by a dense CRF, as older methods do. Takes seconds each.")
    ] = False,
    word_vectors: Annotated[
        Path | None,
        typer.Option(
            help="The vector file that the model's words started from. All its words are then understood.",
            show_default=False,
        ),
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Scores a model under a named protocol.

    Prints overall and mean IoU: in all, by kind of expression, and by size.

    \b
    refseg evaluate shipped --data scenes:100
    refseg evaluate runs/mine --data val/instances.json --protocol lavt
    refseg evaluate runs/mine --data unc:val --out report.json --card card
    refseg evaluate runs/mine --data scenes:100:7 --swaps
    torchrun --nproc-per-node 2 -m refseg evaluate shipped --data scenes:100

    The exit code is 1 if some photographs could not be read and were skipped.
    """
    from refseg.data.parses import know_trees
    from refseg.data.sources import load_rows
    from refseg.evaluation.crf import refine
    from refseg.evaluation.evaluate import evaluate as score
    from refseg.evaluation.protocols import find_protocol

    for folder in (out.parent if out else None, card):
        if folder is not None:
            ensure_writable(folder)
    if card is not None:
        from refseg.evaluation.plots import need_matplotlib

        need_matplotlib()
    if crf:
        from refseg.evaluation.crf import need_crf

        need_crf()
    rows = [row for spec in data for row in load_rows(spec, seed=seed)]
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    place = _device_of_this_process(device) if shared else device
    segmenter = load_model(model, place, threads=threads, refine=refine if crf else None, word_vectors=word_vectors)
    know_trees(segmenter.tokenizer, rows)
    if crf:
        model += " + dense CRF"
    result = score(
        segmenter,
        rows,
        max_photos=photos,
        model=model,
        data=" ".join(data),
        protocol=find_protocol(protocol),
        seed=seed,
        share=shared,
    )
    if os.environ.get("RANK", "0") != "0":  # torchrun starts this command once per process
        return
    _finish(result, out, as_json)
    if swaps:
        from refseg.evaluation.swaps import ALL, consistency

        everything = [row for spec in data for row in load_rows(spec, seed=seed, per_photo=ALL)]
        typer.echo(consistency(segmenter, everything).to_text(), err=as_json)
    if card is not None:
        from refseg.evaluation.card import write_card

        for path in write_card(result, segmenter, rows, card):
            typer.echo(path, err=as_json)
    if result.skipped:
        raise typer.Exit(1)


def score(
    predictions: Annotated[Path, typer.Argument(help="A file with one JSON line per expression (see below).")],
    data: Data,
    protocol: ProtocolOption = ProtocolName.NATIVE,
    name: Annotated[str, typer.Option(help="The model's name in the report. By default the file's name.")] = "",
    resolution: Annotated[
        int | None,
        typer.Option(
            min=2, help="Side of the model's square input, in pixels. Protocol shnet needs it.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Scores the predictions of any model under the same protocols.

    \b
    refseg score predictions.jsonl --data table.jsonl
    refseg score lavt.jsonl --data unc:val --protocol lavt --name LAVT --out lavt.json

    A line is {"row": 0, "rle": {"size": [H, W], "counts": "…"}}.
    In place of row it may have image and expression.
    An expression without a prediction counts as an empty mask and is reported.

    The exit code is 1 if some lines could not be used or some expressions have no prediction.
    It is 2 if nothing was scored.
    """
    from refseg.data.sources import load_rows
    from refseg.evaluation.predictions import score_predictions
    from refseg.evaluation.protocols import find_protocol

    if not predictions.is_file():
        raise RefsegError(f"there is no file {predictions}; give predictions as JSON lines")
    if out is not None:
        ensure_writable(out.parent)
    rows = [row for spec in data for row in load_rows(spec, seed=seed)]
    result = score_predictions(
        predictions,
        rows,
        model=name,
        data=" ".join(data),
        protocol=find_protocol(protocol),
        image_size=resolution,
        seed=seed,
    )
    for problem in result.problems[:_SHOWN]:
        typer.echo(f"refseg: {problem}", err=True)
    if len(result.problems) > _SHOWN:
        typer.echo(f"refseg: and {len(result.problems) - _SHOWN} more; --out writes all of them", err=True)
    _finish(result, out, as_json)
    if result.problems:
        raise typer.Exit(1)


def report(
    reports: Annotated[
        list[Path],
        typer.Argument(
            help="Reports that evaluate or score wrote with --out. A folder of reports is one model, trained with "
            "several seeds."
        ),
    ],
    format: Annotated[Format, typer.Option(help="markdown for people, csv for programs.")] = Format.MARKDOWN,
    by: Annotated[str, typer.Option(help="Compare within groups: kind, siblings, size or set.")] = "all",
) -> None:
    """Compares models, with 95% intervals of the differences.

    Each model is compared with the first. There is one table per protocol and data.
    The intervals are paired: every model is resampled over the same photographs.

    \b
    refseg report baseline.json shnet.json
    refseg report baseline.json shnet.json --by kind --format csv
    refseg report runs/shnet/ runs/baseline/    folders of several seeds
    """
    from refseg.evaluation.comparison import read_runs, to_csv, to_markdown

    rows = [read_runs(path) for path in reports]
    typer.echo(to_csv(rows, by) if format is Format.CSV else to_markdown(rows, by))


def calibrate(
    model: Annotated[Path, typer.Argument(help="A checkpoint's folder. Its config.json is changed.")],
    data: Data,
    seed: Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw the reliability plot, for example reliability.png.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Fit and print, but do not change the checkpoint.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fits a checkpoint's score to the IoU to expect.

    Use data that the model was not trained on.
    Also fits `found`, which says whether the thing is in the photograph at all.
    The printed numbers are cross-validated over photographs.

    \b
    refseg calibrate runs/mine --data val/instances.json
    refseg calibrate runs/mine --data val/instances.json --dry-run --plot reliability.png
    """
    from refseg.data.parses import know_trees
    from refseg.data.sources import load_rows
    from refseg.evaluation.calibrate import fit_calibration, write_calibration

    if not (model / "config.json").is_file():
        raise RefsegError(f"there is no checkpoint in {model}; give the folder of its config.json")
    if plot is not None:
        from refseg.evaluation.plots import need_matplotlib

        need_matplotlib()
        ensure_writable(plot.parent)
    rows = [row for spec in data for row in load_rows(spec, seed=seed)]
    segmenter = load_model(str(model), device, threads=threads)
    know_trees(segmenter.tokenizer, rows)
    result = fit_calibration(segmenter, rows, seed=seed)
    typer.echo(result.to_text())
    if plot is not None:
        from refseg.evaluation.plots import plot_reliability

        plot_reliability(result.expected, result.ious, plot)
        typer.echo(plot)
    if not dry_run:
        typer.echo(write_calibration(model, result.calibration))


def _finish(result: Report, out: Path | None, as_json: bool) -> None:
    record = result.to_json()
    if out is not None:
        with whole(out) as unfinished:
            unfinished.write_text(record + "\n", encoding="utf-8")
    typer.echo(record if as_json else result.to_text())


def _device_of_this_process(device: str) -> str:
    """Under torchrun, each process takes the GPU with its number."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device
