"""The image encoder's inference form on a CPU: batch norm folded, channels last, a pooling that gathers."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.engines.convolutions import Conv, channels_last
from refseg.engines.packed import LEAKY, NOTHING, Geometry, activation_of
from refseg.models.interface import Features
from refseg.models.parts.image_encoder import ImageEncoder


class FastImageEncoder(nn.Module):
    """`image_encoder.ImageEncoder` for inference."""

    mean: Tensor
    std: Tensor

    def __init__(self, plain: ImageEncoder) -> None:
        super().__init__()
        self.backbone = fold_backbone(copy.deepcopy(plain.backbone)).requires_grad_(False)
        blocks: Any = plain.project
        self.project = nn.ModuleList(Projection(*folded(conv, norm), plain.grid) for conv, norm, _ in blocks)
        self.register_buffer("mean", plain.mean.clone())
        self.register_buffer("std", plain.std.clone())

    def forward(self, images: Tensor) -> Features:
        """images (I, 3, S, S) in 0..1 → three levels, each (I, C, grid, grid)."""
        pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = (channels_last(level) for level in self.backbone(pixels))
        first, second, third = (
            project(level).permute(0, 3, 1, 2) for project, level in zip(self.project, maps, strict=True)
        )
        return first, second, third


def folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what `conv` and then the batch norm with its statistics do."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return (conv.weight * scale.view(-1, *(1 for _ in conv.weight.shape[1:]))).detach(), bias.detach()


def fold_backbone(backbone: nn.Module) -> nn.Module:
    """Makes one `FoldedConv` of each convolution, batch norm and activation of a `transformers` backbone, in place.

    ResNet and MobileNetV2 are built of such layers; what is built otherwise stays as it is.
    """
    for parent in list(backbone.modules()):
        for name, layer in parent.named_children():
            conv, norm = getattr(layer, "convolution", None), getattr(layer, "normalization", None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.padding_mode == "zeros":
                setattr(parent, name, FoldedConv(layer, conv, norm))
    return backbone


class FoldedConv(nn.Module):
    """A layer of a backbone: convolution, batch norm and activation; (B, C, h, w) with channels last in and out."""

    def __init__(self, layer: Any, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        weight, bias = folded(conv, norm)
        padding, stride, dilation = int(conv.padding[0]), conv.stride[0], conv.dilation[0]
        if tensorflow := getattr(getattr(layer, "config", None), "tf_padding", False) and conv.kernel_size == (3, 3):
            padding = dilation
        follows = getattr(layer, "activation", None)
        packed = activation_of(follows)
        geometry = Geometry(padding, stride, dilation, conv.groups)
        self.conv = Conv(weight, bias, geometry, packed or NOTHING)
        self.on_even_sides: Conv | None = None
        """TensorFlow pads even sides at the far end alone: as zeros at the kernel's near end do, without a copy."""
        if tensorflow and stride == 2:
            self.on_even_sides = Conv(F.pad(weight, (1, 0, 1, 0)), bias, geometry, packed or NOTHING)
        self.activation: Any = nn.Identity() if packed else copy.deepcopy(follows)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv if self.on_even_sides is None or x.shape[-1] % 2 else self.on_even_sides
        return self.activation(conv(channels_last(x)).permute(0, 3, 1, 2))


class Projection(nn.Module):
    """Pooling to twice the grid, then the 3×3 convolution of stride 2: (B, h, w, in) → (B, grid, grid, C).

    A map of the grid's own side would be pooled to each pixel four times. Of their three rows, as of their three
    columns, two are then the same: 2×2 taps on the map itself say it with fewer products.
    """

    def __init__(self, weight: Tensor, bias: Tensor, grid: int) -> None:
        """weight (C, in, 3, 3), bias (C,)."""
        super().__init__()
        self.grid = grid
        self.of_pooled = Conv(weight, bias, Geometry(padding=1, stride=2), LEAKY)
        for axis in (2, 3):
            one, same = weight.narrow(axis, 0, 1), weight.narrow(axis, 1, 2)
            weight = torch.cat([one, same.sum(dim=axis, keepdim=True)], dim=axis)
        self.of_map = Conv(weight, bias, Geometry(padding=1), LEAKY)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == x.shape[2] == self.grid:
            return self.of_map(x)[:, : self.grid, : self.grid]
        return self.of_pooled(max_pool(x, 2 * self.grid))


def max_pool(x: Tensor, side: int) -> Tensor:
    """Adaptive maximum pooling of (B, h, w, C) to (B, side, side, C), by gathering each window's rows, then columns."""
    for axis in (1, 2):
        first, *others = _windows(x.shape[axis], side)
        pooled = x.index_select(axis, first)
        for place in others:
            pooled = torch.maximum(pooled, x.index_select(axis, place))
        x = pooled
    return x


@lru_cache(maxsize=64)
def _windows(length: int, side: int) -> tuple[Tensor, ...]:
    """The members of each window of an adaptive pooling, (side,) each; the last one of a short window repeats."""
    starts = [i * length // side for i in range(side)]
    ends = [-(-(i + 1) * length // side) for i in range(side)]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    with torch.inference_mode(False):
        return tuple(
            torch.tensor([min(start + k, end - 1) for start, end in zip(starts, ends, strict=True)])
            for k in range(longest)
        )
