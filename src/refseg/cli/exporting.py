"""`refseg export`: a model as graphs for other runtimes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import SHIPPED, ModelArgument
from refseg.cli.files import ensure_writable


class Format(StrEnum):
    """What other runtimes read."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(StrEnum):
    """How weights are stored."""

    FLOAT32 = "float32"
    INT8 = "int8"


def export(
    out: Annotated[Path, typer.Option(help="The folder to write, for example exported.")],
    model: ModelArgument = SHIPPED,
    format: Annotated[Format, typer.Option(help="The format of the graphs.")] = Format.ONNX,
    precision: Annotated[
        Precision, typer.Option(help="How weights are stored. int8 takes 8 bits each and needs ONNX.")
    ] = Precision.FLOAT32,
) -> None:
    """Writes a model as graphs that run without refseg and PyTorch.

    \b
    refseg export --out exported
    refseg export runs/mine --out exported --precision int8
    python examples/onnx_only.py street.jpg "the red bag" --model exported --out mask.png

    image_encoder runs once per photograph, expression_decoder once per expression.
    preprocessing.json describes the steps before and after, tokenizer.json is the vocabulary.
    docs/export.md explains both.
    """
    from refseg.checkpoints import find_checkpoint
    from refseg.engines.export import export as write

    ensure_writable(out)
    for path in write(find_checkpoint(model), out, format, precision):
        typer.echo(path)
