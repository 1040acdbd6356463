"""A convolutional LSTM that walks over maps of one photograph, as RRN, CMPC and LSCM use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvLSTM(nn.Module):
    """A ConvLSTM of kernel 1×1 with peepholes and layer normalisation (Shi et al., NeurIPS 2015; Ba et al. 2016).

    With x a map, h and c what the step before left behind, ∘ the product by cells and N a layer normalisation over all
    channels and places of one map:

        [j; i; f; o] = W [x; h]
        c' = σ(N(f + P_f ∘ c) + 1) ∘ c + σ(N(i + P_i ∘ c)) ∘ tanh(N(j))
        h' = σ(N(o + P_o ∘ c')) ∘ tanh(N(c'))

    and N(c') is the c of the next step. The peepholes P have a weight per channel and place, so they belong to a grid;
    on another one they are resized. They start shut.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * width, 4 * width, 1, bias=False)
        nn.init.xavier_uniform_(self.gates.weight)
        self.peepholes = nn.Parameter(torch.zeros(3, width, grid, grid))
        self.of_new, self.of_write, self.of_keep, self.of_read, self.of_cell = (
            nn.GroupNorm(1, width) for _ in range(5)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), at least one, in the order of the walk → what is left after the last, (B, C, h, w)."""
        write_peephole, keep_peephole, read_peephole = resized(self.peepholes, maps[0])
        hidden = cell = torch.zeros_like(maps[0])
        for x in maps:
            new, write, keep, read = self.gates(torch.cat([x, hidden], dim=1)).chunk(4, dim=1)
            write = self.of_write(write + write_peephole * cell).sigmoid()
            keep = (self.of_keep(keep + keep_peephole * cell) + 1).sigmoid()
            cell = keep * cell + write * self.of_new(new).tanh()
            read = self.of_read(read + read_peephole * cell).sigmoid()
            cell = self.of_cell(cell)
            hidden = read * cell.tanh()
        return hidden


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, C, any, any) with the sides of `like`."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)
