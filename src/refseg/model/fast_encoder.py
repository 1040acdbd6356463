"""The image encoder's inference form on a CPU: batch norm folded, channels last, a pooling that gathers."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.model.convolutions import Taps, Winograd, atrous, channels_last
from refseg.model.image_encoder import ImageEncoder, Levels

LEAST_CHANNELS = 64
"""Below so many channels Winograd's transforms cost more than they save."""


class FastImageEncoder(nn.Module):
    """`image_encoder.ImageEncoder` for inference."""

    mean: Tensor
    std: Tensor

    def __init__(self, plain: ImageEncoder) -> None:
        super().__init__()
        self.grid = plain.grid
        self.backbone = fold_backbone(copy.deepcopy(plain.backbone)).requires_grad_(False)
        blocks: Any = plain.project
        self.project = nn.ModuleList(Stride2(*folded(conv, norm)) for conv, norm, _ in blocks)
        self.register_buffer("mean", plain.mean.clone())
        self.register_buffer("std", plain.std.clone())

    def forward(self, images: Tensor) -> Levels:
        """images (I, 3, S, S) in 0..1 → three levels, each (I, C, grid, grid)."""
        pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pooled = [max_pool(channels_last(level), 2 * self.grid) for level in self.backbone(pixels)]
        first, second, third = (
            F.leaky_relu_(project(level), 0.1).permute(0, 3, 1, 2)
            for project, level in zip(self.project, pooled, strict=True)
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
        self.conv = copy.deepcopy(conv)
        self.conv.weight, self.conv.bias = (
            nn.Parameter(weight.contiguous(memory_format=torch.channels_last)),
            nn.Parameter(bias),
        )
        self.single = conv.kernel_size == (1, 1) and conv.groups == 1
        self.after = 0
        """Rows and columns of padding at the far sides alone, where the convolution was TensorFlow's."""
        if getattr(getattr(layer, "config", None), "tf_padding", False) and not self.single:
            if conv.stride == (1, 1):
                self.conv.padding = conv.dilation
            else:
                self.after = conv.kernel_size[0] - conv.stride[0]
        self.activation = copy.deepcopy(getattr(layer, "activation", None)) or nn.Identity()
        if hasattr(self.activation, "inplace"):
            self.activation.inplace = True
        self.forms: dict[int, Winograd | Taps] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self._convolve(x))

    def _convolve(self, x: Tensor) -> Tensor:
        if self.single:
            across = channels_last(x)[:, :: self.conv.stride[0], :: self.conv.stride[1]]
            return F.linear(across, self.conv.weight.flatten(1), self.conv.bias).permute(0, 3, 1, 2)
        if self._is_winograds():
            return self._form(max(x.shape[2:]))(channels_last(x)).permute(0, 3, 1, 2)
        return self.conv(F.pad(x, (0, self.after, 0, self.after)) if self.after else x)

    def _is_winograds(self) -> bool:
        conv = self.conv
        plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
        return plain and conv.padding == conv.dilation and conv.in_channels >= LEAST_CHANNELS

    def _form(self, side: int) -> Winograd | Taps:
        if side not in self.forms:  # which form is the cheapest depends on the side
            assert self.conv.bias is not None
            weight, bias, dilation = self.conv.weight.detach(), self.conv.bias.detach(), self.conv.dilation[0]
            self.forms[side] = Winograd(weight, bias) if dilation == 1 else atrous(weight, bias, dilation, side)
        return self.forms[side]


class Stride2(nn.Module):
    """A 3×3 convolution of stride 2 with padding 1 as one matrix product over gathered neighbourhoods."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight (out, in, 3, 3), bias (out,)."""
        super().__init__()
        self.register_buffer("weight", weight.permute(0, 2, 3, 1).flatten(1).contiguous())
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) with even h and w → (B, h/2, w/2, out)."""
        n, h, w, c = x.shape
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        image, line, _, _ = padded.stride()
        patches = padded.as_strided((n, h // 2, w // 2, 3, 3, c), (image, 2 * line, 2 * c, line, c, 1))
        return F.linear(patches.reshape(n, h // 2, w // 2, -1), self.weight, self.bias)


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
