"""Convolutions with less arithmetic, exact but for rounding; the inference form is built from them.

All work on maps with channels last, (B, h, w, C). `Conv` takes whichever form is the fastest for a map.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.engines.packed import NOTHING, Activation, DirectConv, Geometry, Linear, computing_dtype, wide_registers

WIDE = 512
"""From so many channels on, Winograd's products are large enough to go to oneDNN one by one."""
POINTS = (0.0, -1.0, 1.0, 0.5, -2.0)
"""Where Winograd's polynomials are evaluated, infinity apart; of small rounding (Barabasz et al. 2020)."""


def channels_last(x: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h, w, C); no copy where the memory is in that order already."""
    return x.permute(0, 2, 3, 1).contiguous()


def winograd_matrices(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (m, m+2), (m+2, 3), (m+2, m+2) in float64 of Winograd's algorithm F(m, 3) for m = 2, 3 or 4.

    m outputs of a correlation of m+2 inputs d with 3 weights g are A[(G g) ∘ (B d)]: m+2 products for 3m
    (Toom–Cook, transposed; Lavin and Gray 2016).
    """

    def evaluate(degree: int) -> Tensor:
        infinity = [0.0] * (degree - 1) + [1.0]
        rows = [[point**power for power in range(degree)] for point in POINTS[: tile + 1]]
        return torch.tensor([*rows, infinity], dtype=torch.float64)

    return evaluate(tile).T, evaluate(3), torch.linalg.inv(evaluate(tile + 2)).T


class Conv(nn.Module):
    """A convolution and what follows it, in the form that takes the least time on the map it is given."""

    def __init__(self, weight: Tensor, bias: Tensor, geometry: Geometry, activation: Activation = NOTHING) -> None:
        """weight (out, in/groups, k, k), bias (out,)."""
        super().__init__()
        self.direct = DirectConv(weight, bias, geometry, activation)
        self.tiled: dict[int, Winograd] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, h', w', out)."""
        tile = self._tile(x)
        if tile is None:
            return self.direct(x)
        if tile not in self.tiled:
            with torch.inference_mode(False):
                dilation = self.direct.geometry.dilation
                self.tiled[tile] = Winograd(self.direct.weight, self.direct.bias, dilation, tile)
        return self.direct.activation(self.tiled[tile](x))

    def _tile(self, x: Tensor) -> int | None:
        """The tile of Winograd's algorithm; None where the convolution as it is written is faster."""
        weight, (padding, stride, dilation, groups) = self.direct.weight, self.direct.geometry
        plain = weight.shape[2:] == (3, 3) and stride == groups == 1 and padding == dilation
        if not plain or computing_dtype(x) == torch.bfloat16:
            return None
        side, channels = max(x.shape[1:3]), min(weight.shape[:2])
        tile = min((3, 4, 2), key=lambda tile: products_of_winograd(side, dilation, tile))
        cost = products_of_winograd(side, dilation, tile) * price_of_winograd(channels)
        return tile if cost < products_of_direct(side, dilation) else None


def products_of_direct(side: int, dilation: int) -> int:
    """Places on a square map times the taps of a 3×3 kernel that see none of the padding there."""
    return (side + 2 * max(0, side - dilation)) ** 2


def products_of_winograd(side: int, dilation: int, tile: int) -> int:
    """What Winograd's algorithm has in their stead."""
    return (dilation * math.ceil(side / (dilation * tile)) * (tile + 2)) ** 2


def price_of_winograd(channels: int) -> float:
    """What one of its products costs, the transforms' share included, where a convolution's costs 1.

    By benchmarks/products.py, on an AMD with AVX-512 and held to AVX2. Tile 4 has a quarter of the products.
    """
    if wide_registers():
        return 2.0 if channels >= WIDE else 4.0
    return 1.7 if channels >= WIDE else 2.5 if channels >= 128 else 3.6


class Winograd(nn.Module):
    """A 3×3 convolution of stride 1 that keeps the size, in (m+2)²/m² products a pixel instead of 9.

    A dilated one is d² plain ones, each over every d-th pixel.
    """

    to_tiles: Tensor
    from_tiles: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, tile: int = 4) -> None:
        """weight (out, in, 3, 3), bias (out,)."""
        super().__init__()
        self.dilation, self.tile = dilation, tile
        a, g, b = (matrix.to(weight.device) for matrix in winograd_matrices(tile))
        scaled = torch.einsum("ik,jl,ockl->ijco", g, g, weight.double()).flatten(0, 1)
        self.register_buffer("to_tiles", torch.kron(b, b).to(weight.dtype))
        self.register_buffer("from_tiles", torch.kron(a, a).to(weight.dtype))
        self.register_buffer("weight", scaled.to(weight.dtype).contiguous())  # ((m+2)², in, out)
        self.register_buffer("bias", bias.clone())
        wide = min(weight.shape[:2]) >= WIDE
        self.products = nn.ModuleList(Linear(matrix.T) for matrix in self.weight) if wide else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, h, w, out)."""
        n, h, w, c = x.shape
        m, a, d = self.tile, self.tile + 2, self.dilation
        rows, columns = math.ceil(h / (m * d)), math.ceil(w / (m * d))  # tiles of each sub-grid
        x = F.pad(x, (0, 0, d, columns * m * d + d - w, d, rows * m * d + d - h))
        image, line = x.stride(0), x.stride(1)
        patches = x.as_strided(
            (a, a, n, d, d, rows, columns, c), (d * line, d * c, image, line, c, m * d * line, m * d * c, 1)
        )
        tiles = (self.to_tiles @ patches.reshape(a * a, -1)).view(a * a, -1, c)
        if self.products is None:
            products = tiles @ self.weight
        else:
            products = torch.stack([product(own) for product, own in zip(self.products, tiles, strict=True)])
        y = self.from_tiles @ products.view(a * a, -1)
        y = y.view(m, m, n, d, d, rows, columns, self.weight.shape[-1]).permute(2, 5, 0, 3, 6, 1, 4, 7)
        y = y.reshape(n, rows * m * d, columns * m * d, -1)[:, :h, :w]
        return y + self.bias


def upsampled(weight: Tensor, bias: Tensor, activation: Activation) -> ConvThenUpsample | UpsampleThenConv:
    """×2 bilinear up-sampling, then a 3×3 convolution (out, in, 3, 3): in the order that is the faster."""
    later = wide_registers() and weight.shape[1] < 128
    return (UpsampleThenConv if later else ConvThenUpsample)(weight, bias, activation)


class UpsampleThenConv(nn.Module):
    """As it is written."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: Activation) -> None:
        super().__init__()
        self.conv = Conv(weight, bias, Geometry(padding=1), activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, 2h, 2w, out)."""
        up = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(channels_last(up))


class ConvThenUpsample(nn.Module):
    """A quarter of the products, taken before the up-sampling.

    Channels are mixed on the small map, once per tap. What is left acts on rows and columns alone: shift and
    interpolate, zero-padded borders included, which are two small matrices.
    """

    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, activation: Activation) -> None:
        super().__init__()
        self.outputs, self.activation = weight.shape[0], activation
        self.taps = Linear(weight.permute(2, 3, 0, 1).flatten(0, 2))  # (3·3·out, in)
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, 2h, 2w, out)."""
        n, h, w, _ = x.shape
        taps = self.taps(x).view(n * h, w, 3, 3, self.outputs)
        # Rows first: (2h, 3h) over (row, vertical tap); then columns: (2w, 3w) over (column, horizontal tap).
        upright = taps.view(n, h, w, 3, -1).transpose(2, 3).reshape(n, h * 3, -1)
        tall = upsample_and_shift(h, x.dtype, x.device) @ upright
        across = tall.view(n * 2 * h, w * 3, self.outputs)
        wide = upsample_and_shift(w, x.dtype, x.device) @ across
        return self.activation(wide.view(n, 2 * h, 2 * w, self.outputs).add_(self.bias))


@lru_cache(maxsize=64)
def upsample_and_shift(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2·length, 3·length): row of the large map from (row of the small map, tap), for one axis."""
    with torch.inference_mode(False):
        up = F.interpolate(torch.eye(length)[None], scale_factor=2, mode="linear", align_corners=False)[0]
        padded = F.pad(up, (1, 1))  # (from, 2·length + 2)
        taps = torch.stack([padded[:, tap : tap + 2 * length] for tap in range(3)], dim=1)  # (from, tap, to)
        return taps.flatten(0, 1).T.contiguous().to(device, dtype)


class ToLogits(nn.Module):
    """A 3×3 convolution to one channel: nine products a pixel, then nine shifted sums of single numbers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight (1, in, 3, 3), bias (1,)."""
        super().__init__()
        # Folding adds what a pixel sends to its neighbours; a convolution, what it receives from them.
        self.register_buffer("weight", weight.flip(2, 3).permute(1, 2, 3, 0).flatten(1).contiguous())
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, 1, h, w)."""
        n, h, w, _ = x.shape
        taps = (x @ self.weight).permute(0, 3, 1, 2).reshape(n, 9, h * w)
        return F.fold(taps, (h, w), 3, padding=1) + self.bias
