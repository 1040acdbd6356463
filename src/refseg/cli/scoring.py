"""`refseg evaluate`, `score`, `report` and `calibrate`: what a model is worth, and what its own word is worth."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refseg.cli.files import ensure_writable
from refseg.cli.segmenting import Device, ModelArgument, load_model
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.evaluation.report import Report


class ProtocolName(StrEnum):
    """The names of `refseg.evaluation.protocols.PROTOCOLS`, known before anything heavy is imported."""

    NATIVE = "native"
    SHNET = "shnet"
    LAVT = "lavt"
    CRIS = "cris"
    GRES = "gres"


class Format(StrEnum):
    """How a comparison is printed."""

    MARKDOWN = "markdown"
    CSV = "csv"


Data = Annotated[
    list[str],
    typer.Option(
        help="A table.jsonl, a COCO-format instances.json, DATASET:SPLIT such as unc:val, or scenes:COUNT; "
        "may be repeated."
    ),
]
ProtocolOption = Annotated[ProtocolName, typer.Option(help="The rules of scoring; docs/protocols.md explains them.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the whole report as JSON, for example report.json.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of generated expressions; a table has its own.")]


def evaluate(
    model: ModelArgument,
    data: Data,
    protocol: ProtocolOption = ProtocolName.NATIVE,
    photos: Annotated[
        int | None,
        typer.Option(min=1, help="Score so many photographs, evenly spread over all.", show_default=False),
    ] = None,
    seed: Seed = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="A folder for the report card: report.json, card.png, contact.jpg.", show_default=False),
    ] = None,
    swaps: Annotated[
        bool, typer.Option("--swaps", help="Also exchange left and right: does the mask move to the other referent?")
    ] = False,
    crf: Annotated[
        bool, typer.Option("--crf", help="Refine each mask by a dense CRF, as older methods do; takes seconds each.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Scores a model: overall and mean IoU under a named protocol, in all, by kind of expression and by size.

    \b
    refseg evaluate shipped --data scenes:100
    refseg evaluate runs/photos --data photos/val/instances.json --protocol lavt --out report.json
    refseg evaluate shipped --data photos/val/instances.json --report card
    refseg evaluate runs/scenes --data scenes:100:7 --swaps
    torchrun --nproc-per-node 2 -m refseg evaluate shipped --data scenes:100
    """
    from refseg.data.sources import load_rows
    from refseg.evaluation.evaluate import evaluate as score
    from refseg.evaluation.protocols import find_protocol

    for folder in (out.parent if out else None, report):
        if folder is not None:
            ensure_writable(folder)
    if report is not None:
        from refseg.evaluation.plots import need_matplotlib

        need_matplotlib()
    if crf:
        from refseg.evaluation.crf import need_crf, refine

        need_crf()
    rows = [row for spec in data for row in load_rows(spec, seed=seed)]
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    segmenter = load_model(model, _own_device(device) if shared else device)
    if crf:
        segmenter.refine = refine
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
    if report is not None:
        from refseg.evaluation.card import write_card

        for path in write_card(result, segmenter, rows, report):
            typer.echo(path, err=as_json)
    if result.skipped:
        raise typer.Exit(1)


def score(
    predictions: Annotated[
        Path, typer.Argument(help="One JSON line per expression; docs/protocols.md has the format.")
    ],
    data: Data,
    protocol: ProtocolOption = ProtocolName.NATIVE,
    name: Annotated[str, typer.Option(help="The model's name in the report; by default the file's.")] = "",
    resolution: Annotated[
        int | None,
        typer.Option(min=2, help="Side of the model's square input, which protocol shnet needs.", show_default=False),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Scores the predictions of any model, under the same protocols as `refseg evaluate`.

    \b
    refseg score predictions.jsonl --data table.jsonl
    refseg score lavt.jsonl --data unc:val --protocol lavt --name LAVT --out lavt.json

    A line is {"row": 0, "rle": {"size": [H, W], "counts": "…"}}, or image and expression in place of row.
    An expression without a prediction counts as answered by an empty mask, and is reported.

    \b
    Exit code 0: all done; 1: some lines could not be used, or some expressions have no prediction;
    2: nothing was scored.
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
        typer.echo(f"refseg: and {len(result.problems) - _SHOWN} more; --out keeps all of them", err=True)
    _finish(result, out, as_json)
    if result.problems:
        raise typer.Exit(1)


_SHOWN = 5
"""Problems that are printed; the rest stands in the report."""


def report(
    reports: Annotated[
        list[Path],
        typer.Argument(
            help="Reports that evaluate or score wrote with --out; a folder of them is one model trained with several "
            "seeds."
        ),
    ],
    format: Annotated[Format, typer.Option(help="A table for people, or for programs.")] = Format.MARKDOWN,
    by: Annotated[str, typer.Option(help="Compare within a group: kind, siblings, size or set.")] = "all",
) -> None:
    """Compares models in one table each per protocol and data, with 95% intervals of the differences to the first.

    The intervals are paired: the photographs are drawn anew, the same ones for all models.

    \b
    refseg report baseline.json shnet.json
    refseg report baseline.json shnet.json --by kind --format csv
    refseg report runs/shnet/ runs/baseline/      # a folder of several seeds: mean ± deviation
    """
    from refseg.evaluation.comparison import read_runs, to_csv, to_markdown

    rows = [read_runs(path) for path in reports]
    typer.echo(to_csv(rows, by) if format is Format.CSV else to_markdown(rows, by))


def calibrate(
    model: Annotated[Path, typer.Argument(help="The folder of a checkpoint; its config.json is written.")],
    data: Data,
    seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Write the reliability plot, for example reliability.png.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and report, and leave the checkpoint alone.")] = False,
    device: Device = "auto",
) -> None:
    """Teaches a checkpoint what its score is worth, on data that it was not trained on.

    Fits the score to the IoU that can be expected, and `found` to whether the referent is in the photograph at all.
    What is printed was cross-validated over photographs.

    \b
    refseg calibrate runs/photos --data photos/val/instances.json
    """
    from refseg.data.sources import load_rows
    from refseg.evaluation.calibrate import fit_calibration, write_calibration

    if not (model / "config.json").is_file():
        raise RefsegError(f"there is no checkpoint in {model}; give the folder of its config.json")
    if plot is not None:
        from refseg.evaluation.plots import need_matplotlib

        need_matplotlib()
        ensure_writable(plot.parent)
    rows = [row for spec in data for row in load_rows(spec, seed=seed)]
    result = fit_calibration(load_model(str(model), device), rows, seed=seed)
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
        out.write_text(record + "\n", encoding="utf-8")
    typer.echo(record if as_json else result.to_text())


def _own_device(device: str) -> str:
    """Under torchrun, each process takes the GPU of its own number."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device
