"""`refseg demo`: a first look, without any file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import SHIPPED, Device, Threads, load_model
from refseg.cli.files import ensure_writable
from refseg.cli.segmenting import describe


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the overlays.")] = Path("demo"),
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Segments three things in a photograph that the package carries, offline.

    \b
    refseg demo
    refseg demo --out pictures
    """
    from refseg.demo import PHOTO, show

    ensure_writable(out)
    typer.echo(PHOTO)
    for number, answer in enumerate(show(load_model(SHIPPED, device, threads=threads), out)):
        note = "" if number else ", the photograph's encoding included"
        typer.echo(f"{describe(PHOTO, answer.result, answer.path)}  {answer.seconds:.2f} s{note}")
