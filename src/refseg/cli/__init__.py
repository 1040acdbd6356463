"""The commands: each is a typed function, its docstring the text of --help.

What is heavy (torch, transformers) is imported inside the commands, so that help and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import split_overrides
from refseg.cli.benchmarking import bench
from refseg.cli.converting import convert
from refseg.cli.datasets import audit, prepare, verify
from refseg.cli.exporting import export
from refseg.cli.figures import figure
from refseg.cli.files import ensure_writable
from refseg.cli.labelling import label
from refseg.cli.scoring import calibrate, evaluate, report, score
from refseg.cli.segmenting import SHIPPED, Device, describe, load_model, segment
from refseg.cli.serving import serve
from refseg.errors import RefsegError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data = typer.Typer(
    no_args_is_help=True, help="Makes expressions and scenes to train on, and reads the published datasets."
)
app.command(no_args_is_help=True)(segment)
app.command(no_args_is_help=True)(label)
app.command(no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(score)
app.command(no_args_is_help=True)(report)
app.command(no_args_is_help=True)(calibrate)
app.command()(serve)
app.command()(bench)
app.command(no_args_is_help=True)(export)
data.command(no_args_is_help=True)(prepare)
data.command(no_args_is_help=True)(verify)
data.command(no_args_is_help=True)(audit)
app.add_typer(data, name="data")
app.add_typer(convert, name="convert")
app.add_typer(figure, name="figure")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    0: all done; 1: some photographs were skipped; 2: nothing could be done, or the command line is wrong;
    130: interrupted.
    """
    logging.basicConfig(format="refseg: %(message)s")
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="refseg")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except RefsegError as fault:
        typer.echo(f"refseg: {fault}", err=True)
    except OSError as fault:
        place = f": {fault.filename}" if fault.filename else ""
        typer.echo(f"refseg: {fault.strerror or fault}{place}", err=True)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refseg {version('refseg')}")
        raise typer.Exit()


@app.callback()
def refseg(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Finds in a photograph what a sentence describes and writes its mask.

    \b
    refseg demo                                    see it work
    refseg segment street.jpg "the red bag"        on your own photograph
    refseg train recipes/scenes.yaml               train a model in minutes, no download
    """


@app.command(context_settings={"ignore_unknown_options": True}, no_args_is_help=True)
def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [--SECTION.KEY VALUE]...",
            help="A YAML file, and values that replace the recipe's.",
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Trains a model from a recipe.

    \b
    refseg train recipes/scenes.yaml
    refseg train recipes/photos.yaml --training.max_steps 100 --training.bf16=true
    torchrun --nproc-per-node 4 -m refseg train recipes/photos.yaml
    """
    recipes, overrides = split_overrides(arguments)
    if len(recipes) != 1:
        named = f"{len(recipes)} are named: {' '.join(recipes)}" if recipes else "none is named"
        raise RefsegError(f"training takes one recipe and {named}; for example: refseg train recipes/scenes.yaml")
    from refseg.training.run import run

    output = run(Path(recipes[0]), overrides, resume)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once per process
        typer.echo(output)


@data.command(no_args_is_help=True)
def expressions(
    instances: Annotated[Path, typer.Argument(help="Segments in COCO format, for example instances.json.")],
    out: Annotated[Path, typer.Option(help="The table to write, for example table.jsonl.")],
    images: Annotated[
        Path | None, typer.Option(help="The photographs' folder; by default images/ beside the instances.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed chooses other expressions.")] = 0,
    per_photo: Annotated[int, typer.Option(min=1, help="At most so many expressions of a photograph.")] = 40,
    split: Annotated[str, typer.Option(help="A name that every row carries, for example val.")] = "",
    sentences: Annotated[
        Path | None,
        typer.Option(help="Take these instead: JSON lines with image_id, annotations (ids) and expression."),
    ] = None,
) -> None:
    """Writes referring expressions for segments that have none, and counts what it wrote.

    Each is true of its segment and of no other in the photograph, by the masks and the pixels.

    \b
    refseg data expressions instances.json --images photos --out table.jsonl
    refseg data expressions instances.json --sentences typed.jsonl --out table.jsonl
    """
    from refseg.data.expressions.generate import generate, statistics
    from refseg.data.expressions.typed import typed_rows
    from refseg.data.table import write_table

    ensure_writable(out.parent)
    if sentences is None:
        rows = list(generate(instances, images, seed=seed, per_photo=per_photo, split=split))
    else:
        rows = list(typed_rows(instances, sentences, images, split=split))
    if not rows:
        raise RefsegError(f"{instances} yields no expressions; it needs photographs with labelled segments")
    write_table(out, rows)
    counts = statistics(rows)
    typer.echo(
        f"{out}: {counts.expressions} expressions of {counts.referents} referents in {counts.photographs} photos"
    )
    typer.echo(
        f"{counts.with_siblings:.0%} of the expressions mean something that has a sibling of its label in the photo"
    )
    typer.echo(f"{counts.words_per_expression:.1f} words per expression, {counts.vocabulary} distinct words")
    for kind, count in counts.kinds.items():
        typer.echo(f"  {kind:<10}{count:>8}")


@data.command(no_args_is_help=True)
def scenes(
    out: Annotated[Path, typer.Option(help="The folder to write, for example scenes.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed renders other scenes.")] = 0,
) -> None:
    """Renders scenes with their segments: photographs to train on without a download.

    \b
    refseg data scenes --out scenes --count 500
    refseg data expressions scenes/instances.json --out scenes/table.jsonl
    """
    from refseg.data.rendered import render

    typer.echo(render(out, count, seed))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder for the overlays.")] = Path("demo"),
    device: Device = "auto",
) -> None:
    """Segments three things in a public-domain photograph with the shipped model, offline.

    \b
    refseg demo
    refseg demo --out pictures
    """
    from refseg.demo import sample_photo, show

    ensure_writable(out)
    photo = sample_photo()
    typer.echo(photo)
    for number, answer in enumerate(show(load_model(SHIPPED, device), out)):
        note = "" if number else ", the photograph's encoding included"
        typer.echo(f"{describe(photo, answer.result, answer.path)}  {answer.seconds:.2f} s{note}")
