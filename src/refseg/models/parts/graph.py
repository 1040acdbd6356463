"""Words as a graph: the dependency tree of each sentence as tensors, and shares among words that are there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refseg.models.interface import TokenBatch

_DOUBLINGS = 10
"""Of the reach up a tree: enough for 1,024 words, where an expression has at most 1,000 characters."""


def heads_of(tokens: TokenBatch) -> Tensor:
    """The head of each word, (B, T) int64; where the batch has no trees, each word depends on the one before."""
    if tokens.heads is not None:
        return tokens.heads
    before = torch.arange(tokens.ids.shape[1], device=tokens.ids.device) - 1
    return before.clamp(min=0).expand_as(tokens.ids)


def depths(heads: Tensor, mask: Tensor) -> Tensor:
    """How many steps lead from each word to its root, (B, T) int64: 0 for the root, and −1 past a sentence's end."""
    place = torch.arange(heads.shape[1], device=heads.device)
    steps, above = (heads != place).long(), heads
    for _ in range(_DOUBLINGS):  # each looks twice as far up
        steps, above = steps + steps.gather(1, above), above.gather(1, above)
    return torch.where(mask, steps, -1)


def edges(heads: Tensor, mask: Tensor) -> Tensor:
    """Which word depends on which, (B, T, T) bool: words by rows, their heads by columns; a root on none."""
    place = torch.arange(heads.shape[1], device=heads.device)
    return (heads.unsqueeze(2) == place) & (place.unsqueeze(1) != place) & mask.unsqueeze(2) & mask.unsqueeze(1)


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Shares that sum to 1 over the scores where `mask` is True and are 0 elsewhere; all are 0 where none is True."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim) * mask


class JointNorm(nn.Module):
    """Layer normalisation over all nodes of a graph and their channels together; gain and bias are per channel."""

    def __init__(self, width: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, nodes: Tensor, mask: Tensor) -> Tensor:
        """nodes (B, N, C), mask (B, N) True at those that are there → (B, N, C), zero at the others."""
        there = mask.unsqueeze(2)
        count = (mask.sum(dim=1) * nodes.shape[2]).clamp(min=1)[:, None, None]
        centred = (nodes - (nodes * there).sum(dim=(1, 2), keepdim=True) / count) * there
        variance = centred.square().sum(dim=(1, 2), keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias) * there
