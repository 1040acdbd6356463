"""A teacher for both encoders, used only in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refseg.models.parts.position import pixels_position
from refseg.models.parts.text_encoder import average_word, last_word


class Alignment(nn.Module):
    """A cheap teacher for both encoders: one feature per pixel, one per sentence, and their product on the grid.

    It is trained together with the network and dropped afterwards. Batch norm on both sides removes what all sentences,
    and all pixels, have in common. Without it, their differences are learnt several times more slowly.
    """

    def __init__(self, width: int, words_width: int) -> None:
        super().__init__()
        self.common = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)
        )
        self.pixels = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.anything = nn.Conv2d(width, 1, 1)
        self.sentence = nn.Linear(2 * words_width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.tensor(width**-0.5))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, places: Tensor, words: Tensor, mask: Tensor, photo_of: Tensor) -> Tensor:
        """places (I, C, h, w), words (B, T, words_width), mask (B, T), photo_of (B,) → mask logits (B, 1, h, w)."""
        c, h, w = places.shape[1:]
        common = self.common(places + pixels_position(h, w, c, places).T.view(c, h, w))
        pixels, anything = self.pixels(common).flatten(2), self.anything(common).flatten(2)  # (I, C, h·w), (I, 1, h·w)
        read = self.sentence(torch.cat([last_word(words, mask), average_word(words, mask)], dim=1))
        sentences = self.norm(read) if len(read) > 1 else read  # (B, C); a single sentence has no statistics
        # A product per photograph instead of a copy of its pixels per expression, whose gradient is slow on a CPU.
        by_photo = sentences.split(photo_of.bincount(minlength=len(pixels)).tolist())
        scores = [s @ p * self.scale + a for s, p, a in zip(by_photo, pixels, anything, strict=True)]
        return torch.cat(scores).view(-1, 1, h, w) + self.bias
