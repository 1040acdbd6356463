"""`refseg bench`: what an answer and a training step cost on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refseg.cli.files import ensure_writable

if TYPE_CHECKING:
    from refseg.evaluation.bench import Growth, Line


class Table(StrEnum):
    """What can be measured."""

    INFERENCE = "inference"
    STAGES = "stages"
    TRAINING = "training"
    GROWTH = "growth"


def bench(
    table: Annotated[
        list[Table] | None, typer.Option(help="What to measure; may be repeated; by default all.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the cases of a table take turns.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads that compute.")] = 1,
    openvino: Annotated[bool, typer.Option("--openvino", help="Also measure OpenVINO.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for one CSV file per table.")] = Path("results"),
) -> None:
    """Measures speed and memory: the paper's network plain and fast, the shipped model, CLIPSeg, and training.

    Cases take turns in one process, so that their ratios hold on a noisy machine. All takes about ten minutes.

    \b
    refseg bench --table inference
    refseg bench --rounds 9 --openvino --out results
    """
    import torch

    from refseg.evaluation import bench as measuring

    ensure_writable(out)
    torch.set_num_threads(threads)
    typer.echo(measuring.machine())
    for name in table or list(Table):
        lines: list[Any]
        if name is Table.GROWTH:
            lines = list(measuring.growth(rounds))
            _show_growth(lines)
        elif name is Table.TRAINING:
            lines = measuring.training(rounds)
            _show(lines)
        elif name is Table.STAGES:
            lines = measuring.stages(rounds)
            _show(lines)
        else:
            lines = measuring.inference(rounds, ("torch", "openvino") if openvino else ("torch",))
            _show(lines)
        path = out / f"{name}.csv"
        measuring.write_csv(path, lines, measuring.machine())
        typer.echo(path)


def _show(lines: list[Line]) -> None:
    names = [f"{line.table}: {line.case}" for line in lines]
    width = max(map(len, names))
    typer.echo(f"{'':<{width}}{'ms':>10}{'times as fast':>15}{'GFLOP':>9}{'of peak':>9}")
    for name, line in zip(names, lines, strict=True):
        gflop = "" if line.gflop is None else f"{line.gflop:.2f}"
        share = "" if line.peak_share is None else f"{line.peak_share:.0%}"
        typer.echo(f"{name:<{width}}{1000 * line.seconds:>10.1f}{line.ratio:>15.2f}{gflop:>9}{share:>9}")


def _show_growth(lines: list[Growth]) -> None:
    typer.echo(f"{'':<36}{'seconds':>10}{'MiB above start':>18}")
    for line in lines:
        typer.echo(f"{line.value:>6g} {line.quantity:<29}{line.seconds:>10.3f}{line.memory:>18.0f}")
