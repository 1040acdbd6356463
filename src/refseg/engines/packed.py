"""Products and convolutions by fixed weights, which are laid out once as oneDNN wants them.

PyTorch's own calls lay weights out anew each time, or hand a product to a library that leaves the wide registers of
some processors idle. These operators are those that `torch.compile` uses for frozen weights; what follows a product is
applied while the result is in the cache. Under autocast they compute in its dtype, as PyTorch's own do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(NamedTuple):
    """What follows a product, by the name that oneDNN and `torch.nn.functional` share."""

    name: str
    numbers: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """In place."""
        return x if self == NOTHING else getattr(F, f"{self.name}_")(x, *self.numbers)


NOTHING = Activation("none")
LEAKY = Activation("leaky_relu", (0.1,))
"""Every leaky ReLU in the network."""


def activation_of(module: nn.Module | None) -> Activation | None:
    """What the module does, None if that cannot follow a product."""
    if isinstance(module, nn.ReLU6):
        return Activation("hardtanh", (0.0, 6.0))
    if isinstance(module, nn.ReLU):
        return Activation("relu")
    return NOTHING if module is None or isinstance(module, nn.Identity) else None


class Geometry(NamedTuple):
    """How a square kernel lies on a map, the same along rows and columns; oneDNN's order."""

    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1


def computing_dtype(x: Tensor) -> torch.dtype:
    """What a product with x is computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and computes in it; what it does not, PyTorch's own calls do."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def wide_registers() -> bool:
    """Whether the processor computes on 512 bits at once; there oneDNN is further ahead of the other libraries."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class Linear(nn.Module):
    """(…, in) → (…, out)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Activation = NOTHING) -> None:
        """weight (out, in), or (out, in, 1, 1) of a 1×1 convolution on maps with channels last; bias (out,)."""
        super().__init__()
        self.activation = activation
        self.register_buffer("weight", weight.detach().flatten(1))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.packed: dict[torch.dtype, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        dtype = computing_dtype(x)
        if not packs(dtype):
            return self.activation(F.linear(x, self.weight, self.bias))
        if dtype not in self.packed:
            with torch.inference_mode(False):
                self.packed[dtype] = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(dtype).contiguous())
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), self.packed[dtype], bias, *self.activation, "")


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of (…, N, C) in float32: head by head where that is faster than PyTorch's own."""
    if not (packs(torch.float32) and wide_registers()):
        return F.scaled_dot_product_attention(query, key, value)
    product = torch.ops.mkldnn._linear_pointwise
    met = []
    heads = (query * query.shape[-1] ** -0.5, key, value.transpose(-1, -2).contiguous())
    for q, k, v in zip(*(part.flatten(0, -3) for part in heads), strict=True):
        scores = product(q, k, None, *NOTHING, "")
        met.append(product(torch.softmax(scores, dim=-1, out=scores), v, None, *NOTHING, ""))
    return torch.stack(met).view(query.shape)


def pack_linears(module: nn.Module) -> nn.Module:
    """Makes a `Linear` of each `nn.Linear` inside and of the ReLU after it, in place."""
    for parent in list(module.modules()):
        last: Linear | None = None
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                last = Linear(layer.weight, layer.bias)
                setattr(parent, name, last)
            elif isinstance(parent, nn.Sequential) and isinstance(layer, nn.ReLU) and last:
                last.activation = Activation("relu")
                setattr(parent, name, nn.Identity())
            else:
                last = None
    return module


class DirectConv(nn.Module):
    """A convolution as it is written; maps (B, h, w, in) → (B, h', w', out).

    Taps that see padding alone cost nothing: oneDNN leaves them out.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, geometry: Geometry, activation: Activation = NOTHING) -> None:
        """weight (out, in/groups, k, k), bias (out,)."""
        super().__init__()
        self.activation, self.geometry = activation, geometry
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())
        self.packed: dict[tuple[torch.dtype, int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        dtype, maps = computing_dtype(x), x.permute(0, 3, 1, 2)
        padding, stride, dilation, groups = self.geometry
        if not packs(dtype):
            y = F.conv2d(maps, self.weight, self.bias, stride, padding, dilation, groups)
            return self.activation(y).permute(0, 2, 3, 1)
        placed = [padding] * 2, [stride] * 2, [dilation] * 2, groups
        key = (dtype, *maps.shape[2:])
        if key not in self.packed:  # which layout is the best depends on the size of the map
            with torch.inference_mode(False):
                weight, size = self.weight.to(dtype).contiguous(), list(maps.shape)
                self.packed[key] = torch.ops.mkldnn._reorder_convolution_weight(weight, *placed, size)
        maps, bias = maps.to(dtype).contiguous(memory_format=torch.channels_last), self.bias.to(dtype)
        y = torch.ops.mkldnn._convolution_pointwise(maps, self.packed[key], bias, *placed, *self.activation, "")
        return y.permute(0, 2, 3, 1)
