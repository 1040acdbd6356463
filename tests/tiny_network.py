"""A second network in a few lines: all that the interface asks for, and nothing that is SHNet's.

It has one feature, no LSTM, another width for words than for pixels, a map on the way, and one logit a cell.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny import TINY
from torch import Tensor, nn

from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.image_encoder import ImageEncoder, PooledLevel
from refseg.models.parts.text_encoder import average_word
from refseg.models.registry import register

SETTINGS: dict[str, Any] = {
    "model_type": "product",
    **{name: TINY[name] for name in ("backbone_config", "image_size", "word_size", "width")},
    "grid": 8,
    "common": 12,
}
"""A recipe's `model` section."""


class ProductConfig(ReferringConfig):
    model_type = "product"

    common: int = 32
    """Channels in which places and sentences are compared."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("common",))


class Product(ReferringNetwork):
    """Each place times the mean of the words."""

    config_class = ProductConfig
    paper = "Nobody, nowhere"

    def __init__(self, config: ProductConfig) -> None:
        super().__init__(config)
        backbone = build_backbone(config.backbone_config, config.output_stride)
        levels = [PooledLevel(channels, config.width) for channels in backbone.channels]
        self.image_encoder = ImageEncoder(
            backbone, levels, config.grid, config.pixel_mean, config.pixel_std, freeze=config.freeze_backbone
        )
        self.text_encoder = Vectors(config.vocabulary, config.word_size)
        self.of_places = nn.Conv2d(config.width, config.common, 1)
        self.of_words = nn.Linear(config.word_size, config.common)
        self.of_any_sentence = nn.Conv2d(config.width, 1, 1)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        return (torch.stack(self.image_encoder(images, grid)).sum(dim=0),)

    def places(self, features: Features) -> Tensor:
        return features[0]

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        words = self.text_encoder(tokens.ids, tokens.mask)
        sentences = self.of_words(average_word(words, tokens.mask))[:, :, None, None]  # (B, common, 1, 1)
        mask_logits = (self.of_places(features[0]) * sentences).sum(dim=1, keepdim=True)
        return Prediction(mask_logits, {"any sentence": self.of_any_sentence(features[0])})


class Vectors(nn.Module):
    """Words that do not know their neighbours."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.embedding(ids) * mask.unsqueeze(-1)


register(Product)
