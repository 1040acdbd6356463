"""Decoder: the joint map becomes mask logits. ASPP (DeepLabv3, Chen et al. 2017), then up-sampling convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError


def conv_norm_act(inputs: int, outputs: int, kernel: int, dilation: int = 1, slope: float = 0.1) -> nn.Sequential:
    """Convolution without bias, batch norm, leaky ReLU. `slope` multiplies negative values; 0 makes it a ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(slope),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1, one 3×3 convolution per rate, and the image's mean, mixed by a 1×1."""

    def __init__(
        self,
        width: int,
        rates: Sequence[int],
        dropout: float,
        *,
        inputs: int | None = None,
        slope: float = 0.1,
        image_norm: bool = False,
        whole_channels: bool = False,
    ) -> None:
        """`inputs`: channels of the joint map, where they are not `width`; `slope`: as in `conv_norm_act`.

        `image_norm`: batch norm on the mean of the image, as in DeepLab, for batches of two expressions or more.
        `whole_channels`: what `dropout` drops; without it, single values.
        """
        super().__init__()
        inputs = inputs or width
        self.branches = nn.ModuleList(
            [conv_norm_act(inputs, width, 1, slope=slope)]
            + [conv_norm_act(inputs, width, 3, rate, slope) for rate in rates]
        )
        # By default without batch norm: the statistics of one value per image are those of the batch's few photographs.
        self.image: nn.Module = nn.Conv2d(inputs, width, 1)
        if image_norm:
            self.image = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.slope = slope
        drop = nn.Dropout2d(dropout) if whole_channels else nn.Dropout(dropout)
        self.mix = nn.Sequential(conv_norm_act((2 + len(rates)) * width, width, 1, slope=slope), drop)

    def forward(self, joint: Tensor) -> Tensor:
        """joint (B, inputs, h, w) → (B, C, h, w)."""
        if self.training and isinstance(self.image, nn.Sequential) and len(joint) == 1:
            raise RefsegError(
                "ASPP's batch norm on the mean of the image needs two expressions per step or more; raise photos or "
                "expressions, or set image_norm: false"
            )
        image = F.leaky_relu(self.image(joint.mean(dim=(2, 3), keepdim=True)), self.slope)
        image = image.expand(-1, -1, *joint.shape[2:])
        return self.mix(torch.cat([branch(joint) for branch in self.branches] + [image], dim=1))


class Decoder(nn.Module):
    """ASPP, then 3×3 convolutions, with ×2 bilinear up-sampling after the first and after the second."""

    def __init__(
        self,
        aspp: ASPP,
        width: int,
        widths: Sequence[int],
        *,
        slope: float = 0.1,
        dropout: float = 0.0,
        align_corners: bool = False,
        cell: float = 4,
    ) -> None:
        """`width`: channels that ASPP yields; `widths`: those of the convolutions, three or more.

        `slope`: as in `conv_norm_act`; `dropout`: share of the channels that are dropped after every convolution but
        the last; `align_corners`: how a bilinear step places pixels, as in `F.interpolate`; `cell`: mask logits along
        the side of a cell of the grid.
        """
        super().__init__()
        self.aspp = aspp
        self.refine = nn.ModuleList(
            conv_norm_act(inputs, outputs, 3, slope=slope)
            for inputs, outputs in zip((width, *widths), widths, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.align_corners = align_corners
        self.cell = cell

    def forward(self, joint: Tensor) -> Tensor:
        """joint (B, C, h, w) → mask logits (B, 1, 4h, 4w), or `cell` times h and w."""
        x = self.aspp(joint)
        for place, refine in enumerate(self.refine):
            if place in (1, 2):
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
            x = refine(x)
            if place < len(self.refine) - 1:
                x = self.dropout(x)
        logits: Tensor = self.head(x)
        size = [round(length * self.cell) for length in joint.shape[2:]]
        if size == list(logits.shape[2:]):
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
