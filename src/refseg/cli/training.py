"""`refseg train`: a recipe in, a checkpoint out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import split_overrides
from refseg.errors import RefsegError


def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [--SECTION.KEY VALUE]...",
            help="A recipe (a YAML file), then values that replace the recipe's own.",
        ),
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
) -> None:
    """Trains a model from a recipe and prints the checkpoint's folder.

    \b
    refseg train recipes/scenes.yaml
    refseg train recipes/photos.yaml --training.max_steps 100
    torchrun --nproc-per-node 4 -m refseg train recipes/photos.yaml

    Every value of a recipe can be replaced on the command line, written as --section.key value.
    """
    recipes, overrides = split_overrides(arguments)
    if len(recipes) != 1:
        named = f"{len(recipes)} are named: {' '.join(recipes)}" if recipes else "none is named"
        raise RefsegError(f"training takes one recipe and {named}; for example: refseg train recipes/scenes.yaml")
    from refseg.training.run import run

    output = run(Path(recipes[0]), overrides, resume)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this command once per process
        typer.echo(output)
