"""`refseg export`: a model as graphs for other runtimes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.files import ensure_writable
from refseg.cli.segmenting import SHIPPED, ModelArgument, load_model


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
    format: Annotated[Format, typer.Option(help="ONNX, or OpenVINO's own.")] = Format.ONNX,
    precision: Annotated[
        Precision, typer.Option(help="int8 stores weights in 8 bits; ONNX alone.")
    ] = Precision.FLOAT32,
) -> None:
    """Writes a model as two graphs that run without refseg and without PyTorch.

    \b
    refseg export --out exported
    refseg export runs/mine --out exported --precision int8
    python examples/onnx_only.py street.jpg "the red bag" --model exported --out mask.png

    image_encoder runs once per photograph, expression_decoder on its expressions; preprocessing.json says what
    stands around them, and tokenizer.json is the vocabulary. docs/export.md explains both.
    """
    from refseg.engines.export import export as write

    ensure_writable(out)
    for path in write(load_model(model, "cpu"), out, format, precision):
        typer.echo(path)
