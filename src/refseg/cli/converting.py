"""`refseg convert`: checkpoints of other projects, made readable here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.files import ensure_writable

convert = typer.Typer(name="convert", no_args_is_help=True, help="Reads checkpoints of other projects.")


@convert.callback()
def _group() -> None:
    """With only one command, typer would leave its name out."""


@convert.command(no_args_is_help=True)
def deeplab(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth.tar file of jfzhang95/pytorch-deeplab-xception.")],
    out: Annotated[Path, typer.Option(help="The folder to write, for a recipe's backbone_weights.")],
) -> None:
    """Converts the paper's backbone, DeepLabv3+.

    It is a ResNet-101 trained on Pascal VOC. The result is a transformers checkpoint.
    Only tensors and numbers are read. A file that needs more is refused.

    \b
    refseg convert deeplab deeplab-resnet.pth.tar --out weights/deeplab-resnet101-voc
    """
    ensure_writable(out)
    from refseg.training.deeplab import convert_deeplab

    config = convert_deeplab(checkpoint, out)
    blocks = "-".join(map(str, config.depths))
    typer.echo(f"{out}: a ResNet of {blocks} blocks; in a recipe: backbone_weights: {out}, model.output_stride: 16")
