"""How a command runs: its faults as one sentence, its exit code, and the order in which --help lists it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperGroup

from refseg.errors import RefsegError

Order: TypeAlias = Mapping[str, Mapping[Callable[..., None] | typer.Typer, dict[str, Any]]]
"""Titles of the sections of --help, the commands in each, and how typer adds each command."""

_OF_TRAINING = ("torch", "transformers", "accelerate", "safetensors", "tensorboard", "yaml", "onnx_ir", "onnxscript")
"""Packages that a base installation lacks."""


def application(order: Order) -> typer.Typer:
    """The command `refseg` with these commands; a command's name is its function's or its group's."""
    sections = {title: [_name(command) for command in commands] for title, commands in order.items()}

    class InOrder(TyperGroup):
        """Typer lists groups first, and its panels need rich, which reads scenes:100:7 as an emoji."""

        def list_commands(self, ctx: Any) -> list[str]:
            return [name for names in sections.values() for name in names]

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            width = max(map(len, self.commands))
            for title, names in sections.items():
                with formatter.section(title):
                    helps = [self.commands[name].get_short_help_str(formatter.width - width) for name in names]
                    formatter.write_dl(list(zip((name.ljust(width) for name in names), helps, strict=True)))

    app = typer.Typer(
        cls=InOrder,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(refseg)
    for commands in order.values():
        for command, settings in commands.items():
            if isinstance(command, typer.Typer):
                app.add_typer(command, **settings)
            else:
                app.command(**settings)(command)
    return app


def _name(command: Callable[..., None] | typer.Typer) -> str:
    return str(command.info.name if isinstance(command, typer.Typer) else command.__name__)


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    0: all done; 1: some photographs were skipped; 2: nothing could be done, or the command line is wrong;
    130: interrupted.
    """
    logging.basicConfig(format="refseg: %(message)s")
    for stream in (sys.stdout, sys.stderr):  # a file's name may contain bytes that the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="refseg")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except RefsegError as fault:
        typer.echo(f"refseg: {fault}", err=True)
    except ModuleNotFoundError as fault:
        if (fault.name or "").partition(".")[0] not in _OF_TRAINING:
            raise
        typer.echo(f'refseg: this command needs {fault.name}; pip install "refseg[train]"', err=True)
    except OSError as fault:
        place = f": {fault.filename}" if fault.filename else ""
        typer.echo(f"refseg: {fault.strerror or fault}{place}", err=True)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refseg {version('refseg')}")
        raise typer.Exit()


def refseg(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Finds in a photograph what a sentence describes and writes its mask.

    \b
    refseg demo                                see it work, offline
    refseg segment street.jpg "the red bag"    on your own photograph
    refseg train scenes                        train a small model, no download
    refseg COMMAND --help                      what a command does, with examples
    """
