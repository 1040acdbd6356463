"""Image encoder: a photograph becomes levels on one common grid (SHNet's paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """A backbone, and what brings each of its maps onto the common grid.

    Batch norm inside the backbone keeps its statistics, frozen or not: the batches are small.
    """

    mean: Tensor
    std: Tensor
    keep_statistics: bool = True
    """False lets the backbone's batch norm learn statistics: one that starts from random weights has none to keep."""

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[nn.Module],
        grid: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        *,
        freeze: bool,
    ) -> None:
        """`levels`: one module per map of the backbone, called with the map and the cells a side; see `PooledLevel`."""
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(not freeze)
        self.freeze = freeze
        self.grid = grid
        self.project = nn.ModuleList(levels)
        self.register_buffer("mean", torch.tensor(list(pixel_mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(pixel_std)).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        if self.keep_statistics:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor, grid: int | None = None) -> tuple[Tensor, ...]:
        """images (I, 3, S, S) in 0..1 → one level per map of the backbone, each (I, C, grid, grid)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            maps = self.backbone((images - self.mean) / self.std)
        return tuple(project(level, grid or self.grid) for project, level in zip(self.project, maps, strict=True))


class PooledLevel(nn.ModuleList):
    """A map of the backbone on the common grid: adaptive max pool to twice the grid, 3×3 convolution of stride 2."""

    def __init__(self, channels: int, width: int, slope: float = 0.1, bias: bool = False) -> None:
        """`slope`: what the leaky ReLU multiplies negative values with; `bias`: that of the convolution."""
        conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=bias)
        super().__init__([conv, nn.BatchNorm2d(width), nn.LeakyReLU(slope)])

    def forward(self, level: Tensor, grid: int) -> Tensor:
        """level (I, channels, any, any) → (I, width, grid, grid)."""
        conv, norm, activation = self
        return activation(norm(conv(F.adaptive_max_pool2d(level, 2 * grid))))
