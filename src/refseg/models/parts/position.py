"""Fixed sinusoids that tell pixels and words where they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def words_position(count: int, width: int, like: Tensor, counted: bool = False) -> Tensor:
    """1-D sinusoids over word indices (Vaswani et al. 2017), (count, width).

    `counted`: in the order of the paper cited, sine and cosine in turn, and from word 0 on.
    """
    table = _counted(count, width, like.device) if counted else _table(count, width, 1.0, like.device)
    return table.to(like.dtype)


def pixels_position(height: int, width_px: int, width: int, like: Tensor, counted: bool = False) -> Tensor:
    """2-D sinusoids, rows in the first half of the channels, columns in the second, (h·w, width).

    Coordinates span one fixed range whatever the grid, so that a network trained on one grid reads another.
    `counted`: columns in the first half and rows in the second, both numbered from 0, sine and cosine in turn.
    """
    if counted:
        across = _counted(width_px, width // 2, like.device)[None].expand(height, -1, -1)
        down = _counted(height, width - width // 2, like.device)[:, None].expand(-1, width_px, -1)
        return torch.cat([across, down], dim=-1).flatten(0, 1).to(like.dtype)
    rows = _table(height, width // 2, 20.0 / height, like.device)
    columns = _table(width_px, width - width // 2, 20.0 / width_px, like.device)
    table = torch.cat([rows[:, None].expand(-1, width_px, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return table.flatten(0, 1).to(like.dtype)


def _table(count: int, width: int, step: float, device: torch.device) -> Tensor:
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10000.0) / half))
    angles = (torch.arange(count, device=device) + 0.5)[:, None] * step * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


def _counted(count: int, width: int, device: torch.device) -> Tensor:
    """Sines in the even and cosines in the odd channels of place · 10000^(−2i / width), (count, width)."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
