"""`refseg bench`: what an answer and a training step cost on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.evaluation.bench import Busy, Growth, Line


class Table(StrEnum):
    """What can be measured."""

    INFERENCE = "inference"
    BUSY = "busy"
    TRAINING = "training"
    GROWTH = "growth"


def bench(
    table: Annotated[
        list[Table] | None, typer.Option(help="What to measure. Repeat it. By default all.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the cases of a table take turns.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads that compute; the table busy has its own.")] = 1,
    openvino: Annotated[bool, typer.Option("--openvino", help="Also measure OpenVINO.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for one CSV file per table.")] = Path("results"),
) -> None:
    """Measures speed and memory of answers and of training.

    Compared are the paper's network plain and by the engines, the shipped model, and CLIPSeg with random weights.
    The cases of a table take turns in one process, so their ratios hold on a noisy machine.
    The table busy compares first answers on idle processors with those beside busy processes.
    All tables together take about a quarter of an hour.

    \b
    refseg bench --table inference
    refseg bench --rounds 9 --openvino --out results
    """
    try:
        import torch

        from refseg.evaluation import bench as measuring
    except ImportError as fault:
        raise RefsegError(f'measuring needs {fault.name}; pip install "refseg[train]"') from fault

    ensure_writable(out)
    torch.set_num_threads(threads)
    typer.echo(measuring.machine())
    for name in table or list(Table):
        lines: list[Any]
        if name is Table.GROWTH:
            lines = list(measuring.growth(rounds, threads))
            _show_growth(lines)
        elif name is Table.BUSY:
            lines = measuring.busy(rounds)
            _show_busy(lines)
        elif name is Table.TRAINING:
            lines = measuring.training(rounds)
            _show(lines)
        else:
            lines = measuring.inference(rounds, threads, openvino)
            _show(lines)
        path = out / f"{name}.csv"
        measuring.write_csv(path, lines, measuring.machine())
        typer.echo(path)


def _show(lines: list[Line]) -> None:
    names = [f"{line.table}: {line.case}" for line in lines]
    width = max(map(len, names))
    typer.echo(f"{'':<{width}}{'ms':>10}{'times as fast':>15}{'GFLOP':>9}")
    for name, line in zip(names, lines, strict=True):
        gflop = "" if line.gflop is None else f"{line.gflop:.2f}"
        typer.echo(f"{name:<{width}}{1000 * line.seconds:>10.1f}{line.ratio:>15.2f}{gflop:>9}")


def _show_busy(lines: list[Busy]) -> None:
    typer.echo(f"{'':<24}{'idle, ms':>10}{'busy, ms':>10}{'worst, ms':>11}{'busy / idle':>13}")
    for line in lines:
        name = f"{line.engine}, {line.threads} thread{'s' if line.threads > 1 else ''}"
        times = f"{1000 * line.idle:>10.0f}{1000 * line.busy:>10.0f}{1000 * line.worst:>11.0f}"
        typer.echo(f"{name:<24}{times}{line.ratio:>13.2f}")


def _show_growth(lines: list[Growth]) -> None:
    typer.echo(f"{'':<36}{'seconds':>10}{'MiB above start':>18}")
    for line in lines:
        typer.echo(f"{line.value:>6g} {line.quantity:<29}{line.seconds:>10.3f}{line.memory:>18.0f}")
