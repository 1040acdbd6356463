"""Decoder: the joint map becomes mask logits. ASPP (DeepLabv3, Chen et al. 2017), then up-sampling convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1, one 3×3 convolution per rate, and the image's mean, mixed by a 1×1."""

    def __init__(self, width: int, rates: list[int], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_norm_act(width, width, 1)] + [conv_norm_act(width, width, 3, rate) for rate in rates]
        )
        # No batch norm here: the statistics of one value per image are those of the batch's few photographs.
        self.image = nn.Conv2d(width, width, 1)
        self.mix = nn.Sequential(conv_norm_act((2 + len(rates)) * width, width, 1), nn.Dropout(dropout))

    def forward(self, joint: Tensor) -> Tensor:
        image = F.leaky_relu(self.image(joint.mean(dim=(2, 3), keepdim=True)), 0.1).expand_as(joint)
        return self.mix(torch.cat([branch(joint) for branch in self.branches] + [image], dim=1))


class Decoder(nn.Module):
    """ASPP, one convolution on the grid, then two steps of ×2 bilinear up-sampling, each before a convolution."""

    def __init__(self, width: int, rates: list[int], widths: list[int], dropout: float) -> None:
        super().__init__()
        self.aspp = ASPP(width, rates, dropout)
        first, second, third = widths
        self.refine = nn.ModuleList(
            [conv_norm_act(width, first, 3), conv_norm_act(first, second, 3), conv_norm_act(second, third, 3)]
        )
        self.head = nn.Conv2d(third, 1, 3, padding=1)

    def forward(self, joint: Tensor) -> Tensor:
        """joint (B, C, h, w) → mask logits (B, 1, 4h, 4w)."""
        x = self.refine[0](self.aspp(joint))
        for refine in self.refine[1:]:
            x = refine(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return self.head(x)
