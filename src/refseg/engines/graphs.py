"""SHNet in two parts that other runtimes compute: what sees the photograph, and what reads the words.

Each is a module of plain tensors, as tracers want it; the weights are the network's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from refseg.models.shnet import SHNet


class ImageEncoderGraph(nn.Module):
    """images (1, 3, S, S) in 0..1 → three levels, each (1, C, h, w)."""

    def __init__(self, model: SHNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode(images))


class AnswerGraph(nn.Module):
    """From the levels of one photograph and the words (E, T, C) of E expressions to mask logits (E, 1, 4h, 4w)."""

    def __init__(self, model: SHNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, mask: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        levels = [level.expand(words.shape[0], -1, -1, -1) for level in (second, third, fourth)]
        fused = [self.model.fusion(level, words, mask) for level in levels]
        return self.model.decoder(self.model.aggregation(fused, mask))


class ExpressionGraph(AnswerGraph):
    """From ids and mask (E, T) and the levels of one photograph to mask logits (E, 1, 4h, 4w)."""

    def forward(self, ids: Tensor, mask: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        return super().forward(self.model.text_encoder(ids, mask), mask, second, third, fourth)
