"""Convolutions with less arithmetic, exact but for rounding; the inference form is built from them.

All work on maps with channels last, (B, h, w, C), where a 1×1 convolution is one matrix product.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Winograd(nn.Module):
    """A 3×3 convolution of stride 1 that keeps the size, in (m+2)²/m² products a pixel instead of 9.

    A dilated one is d² plain ones, each over every d-th pixel.
    """

    to_tiles: Tensor
    from_tiles: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, tile: int = 4) -> None:
        """weight (out, in, 3, 3), or (groups, out, in, 3, 3) for as many maps side by side; bias (…, out)."""
        super().__init__()
        self.dilation, self.tile = dilation, tile
        a, g, b = (matrix.to(weight.device) for matrix in winograd_matrices(tile))
        scaled = torch.einsum("ik,jl,...ockl->...ijco", g, g, weight.double()).flatten(-4, -3)
        self.register_buffer("to_tiles", torch.kron(b, b).to(weight.dtype))
        self.register_buffer("from_tiles", torch.kron(a, a).to(weight.dtype))
        self.register_buffer("weight", scaled.to(weight.dtype).contiguous())  # ([groups,] (m+2)², in, out)
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """([groups,] B, h, w, in) → ([groups,] B, h, w, out)."""
        (n, h, w, c), groups = x.shape[-4:], x.shape[:-4]
        m, a, d = self.tile, self.tile + 2, self.dilation
        rows, columns = math.ceil(h / (m * d)), math.ceil(w / (m * d))  # tiles of each sub-grid
        x = F.pad(x, (0, 0, d, columns * m * d + d - w, d, rows * m * d + d - h)).view(-1, *self._padded(h, w), c)
        image, line = x.stride(0), x.stride(1)
        patches = x.as_strided(
            (*groups, a, a, n, d, d, rows, columns, c),
            (*(n * image for _ in groups), d * line, d * c, image, line, c, m * d * line, m * d * c, 1),
        )
        tiles = self.to_tiles @ patches.reshape(*groups, a * a, -1)
        products = tiles.view(*groups, a * a, -1, c) @ self.weight
        y = self.from_tiles @ products.view(*groups, a * a, -1)
        y = y.view(-1, m, m, n, d, d, rows, columns, self.weight.shape[-1]).permute(0, 3, 6, 1, 4, 7, 2, 5, 8)
        y = y.reshape(*groups, n, rows * m * d, columns * m * d, -1)[..., :h, :w, :]
        return y + self.bias[..., None, None, None, :]

    def _padded(self, h: int, w: int) -> tuple[int, int]:
        step = self.tile * self.dilation
        return math.ceil(h / step) * step + 2 * self.dilation, math.ceil(w / step) * step + 2 * self.dilation


class Taps(nn.Module):
    """A dilated 3×3 convolution as nine matrix products, each over the pixels alone whose neighbour is no padding."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int) -> None:
        """weight (out, in, 3, 3), bias (out,)."""
        super().__init__()
        self.dilation = dilation
        self.register_buffer("weight", weight.permute(2, 3, 1, 0).contiguous())  # (3, 3, in, out)
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, h, w, out)."""
        h, w = x.shape[1:3]
        y = torch.matmul(x, self.weight[1, 1]) + self.bias
        for row, column in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
            down, right = (row - 1) * self.dilation, (column - 1) * self.dilation
            if abs(down) < h and abs(right) < w:
                to, source = zip(overlap(h, down), overlap(w, right), strict=True)
                y[:, to[0], to[1]] += x[:, source[0], source[1]] @ self.weight[row, column]
        return y


def overlap(length: int, shift: int) -> tuple[slice, slice]:
    """The places of a row that have a neighbour `shift` further on, and those neighbours."""
    return slice(max(0, -shift), min(length, length - shift)), slice(max(0, shift), min(length, length + shift))


def products_of_taps(length: int, dilation: int) -> int:
    """Products that `Taps` forms per row of so many pixels."""
    return length + 2 * max(0, length - dilation)


def atrous(weight: Tensor, bias: Tensor, dilation: int, side: int) -> Winograd | Taps:
    """The cheaper form of a dilated 3×3 convolution on a map of that side."""

    def products_of_winograd(tile: int) -> int:
        return dilation * math.ceil(side / (dilation * tile)) * (tile + 2)

    tile = min((4, 3, 2), key=products_of_winograd)
    if products_of_winograd(tile) < products_of_taps(side, dilation):
        return Winograd(weight, bias, dilation, tile)
    return Taps(weight, bias, dilation)


class UpsampledConv(nn.Module):
    """×2 bilinear up-sampling, then a 3×3 convolution: a quarter of the products, taken before the up-sampling.

    Channels are mixed on the small map, once per tap. What is left acts on rows and columns alone: shift and
    interpolate, zero-padded borders included, which are two small matrices.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """weight (out, in, 3, 3), bias (out,)."""
        super().__init__()
        self.outputs = weight.shape[0]
        self.register_buffer("weight", weight.permute(1, 2, 3, 0).flatten(1).contiguous())  # (in, 3·3·out)
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, in) → (B, 2h, 2w, out)."""
        n, h, w, _ = x.shape
        taps = (x @ self.weight).view(n * h, w, 3, 3, self.outputs)
        # Rows first: (2h, 3h) over (row, vertical tap); then columns: (2w, 3w) over (column, horizontal tap).
        upright = taps.view(n, h, w, 3, -1).transpose(2, 3).reshape(n, h * 3, -1)
        tall = upsample_and_shift(h, x.dtype, x.device) @ upright
        across = tall.view(n * 2 * h, w * 3, self.outputs)
        wide = upsample_and_shift(w, x.dtype, x.device) @ across
        return wide.view(n, 2 * h, 2 * w, self.outputs) + self.bias


@lru_cache(maxsize=64)
def upsample_and_shift(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2·length, 3·length): row of the large map from (row of the small map, tap), for one axis of `UpsampledConv`."""
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
