"""`refseg convert`: other projects' checkpoints made readable here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.files import ensure_writable

convert = typer.Typer(no_args_is_help=True, help="Makes other projects' checkpoints readable here.")


@convert.callback()
def _group() -> None:
    """With one command alone, typer would leave its name out."""


@convert.command(no_args_is_help=True)
def deeplab(
    checkpoint: Annotated[Path, typer.Argument(help="The .pth.tar file of jfzhang95/pytorch-deeplab-xception.")],
    out: Annotated[Path, typer.Option(help="The folder to write, for a recipe's backbone_weights.")],
) -> None:
    """Converts the backbone of DeepLabv3+ (ResNet-101, Pascal VOC), the paper's, to a transformers checkpoint.

    The file is read as tensors and numbers; one that asks for more is refused.

    \b
    refseg convert deeplab deeplab-resnet.pth.tar --out weights/deeplab-resnet101-voc
    """
    ensure_writable(out)
    from refseg.training.deeplab import convert_deeplab

    config = convert_deeplab(checkpoint, out)
    blocks = "-".join(map(str, config.depths))
    typer.echo(f"{out}: a ResNet of {blocks} blocks; in a recipe: backbone_weights: {out}, model.output_stride: 16")
