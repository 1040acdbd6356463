"""MUTAN: a map and a sentence meet in a few products (Ben-younes et al., ICCV 2017), as CMPC and LSCM use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.parts.lateral import COORDINATES, start_xavier, with_coordinates


class Mutan(nn.Module):
    """The sum of `heads` products of what is seen and what is said, each with its own weights:

        tanh(Σ_k tanh(A_k [v; P]) ∘ tanh(B_k s))

    scaled to length 1 at each place. P says where a place is: `lateral.coordinates`.
    """

    def __init__(self, channels: int, text_width: int, width: int, heads: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.of_places = nn.Conv2d(channels + COORDINATES, heads * width, 1)
        self.of_sentence = nn.Linear(text_width, heads * width)
        start_xavier(self)

    def forward(self, level: Tensor, sentence: Tensor) -> Tensor:
        """level (B, channels, h, w), sentence (B, text_width) → (B, width, h, w)."""
        seen = self.of_places(with_coordinates(level)).tanh().unflatten(1, (self.heads, -1))
        said = self.of_sentence(sentence).tanh().unflatten(1, (self.heads, -1))
        return F.normalize(torch.einsum("bkchw,bkc->bchw", seen, said).tanh(), dim=1)
