"""CMPC: entities and attributes first, then relations on a graph of places, then an exchange between the levels.

Referring Image Segmentation via Cross-Modal Progressive Comprehension, Huang et al., CVPR 2020.

As in the released code, a ConvLSTM over the exchanged levels ends the network, and each level has a map on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.convlstm import ConvLSTM
from refseg.models.parts.graph import JointNorm, masked_softmax
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, coordinates, start_xavier
from refseg.models.parts.lstm import ForgetLSTMEncoder
from refseg.models.parts.mutan import Mutan
from refseg.models.parts.unit_levels import build_unit_encoder

KINDS = ("entity", "attribute", "relation", "unnecessary")
"""What a word can be, in the order of the shares."""


class CMPCConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "cmpc"

    fused_width: int = 64
    """Channels of a level once it has met the sentence."""
    mutan_heads: int = 5
    exchanges: int = 2
    """Rounds of exchange between the levels."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("fused_width", "mutan_heads", "exchanges"))

    @classmethod
    def published(cls, **changes: Any) -> CMPCConfig:
        """The published network, with the vocabulary of UNC."""
        sizes = {"vocabulary": 12112, "word_size": 300, "width": 1000, "fused_width": 500}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class CMPC(ReferringNetwork):
    """Comprehension on each level, then rounds of exchange, then a ConvLSTM from shallow to deep."""

    config_class = CMPCConfig
    paper = "Referring Image Segmentation via Cross-Modal Progressive Comprehension, CVPR 2020"
    config: CMPCConfig

    def __init__(self, config: CMPCConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_unit_encoder(config)
        self.text_encoder = ForgetLSTMEncoder(
            config.vocabulary, config.word_size, config.width, config.dropout, freeze=config.freeze_words
        )
        self.kinds = Kinds(config.width)
        self.comprehension = nn.ModuleList(
            Comprehension(config.width, config.fused_width, config.mutan_heads) for _ in range(3)
        )
        self.exchanges = nn.ModuleList(Exchange(config.fused_width, config.width) for _ in range(3 * config.exchanges))
        self.walk = ConvLSTM(config.fused_width, config.grid)
        self.level_scores = nn.ModuleList(nn.Conv2d(config.fused_width, 1, 3, padding=1) for _ in range(3))
        self.score = nn.Conv2d(config.fused_width, 1, 3, padding=1)
        start_xavier(self.kinds, self.comprehension, self.exchanges, self.level_scores, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → three levels (I, C, h, w), each place of length 1."""
        return self.image_encoder(images, grid)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """Three levels of each expression's photograph, (B, C, h, w), and the sentences → logits (B, 1, h, w)."""
        words = F.normalize(self.text_encoder(tokens.ids, tokens.mask), dim=2)  # (B, T, C)
        kinds = self.kinds(words, tokens.mask)  # (B, T, 4)
        entity, attribute, relation, unnecessary = kinds.unbind(dim=2)
        named = weighed_sum(words, entity + attribute)  # (B, C)
        said = weighed_sum(words, (1 - unnecessary) * tokens.mask)  # (B, C)
        levels = [
            comprehend(level, words, named, relation, tokens.mask)
            for comprehend, level in zip(self.comprehension, features, strict=True)
        ]  # each (B, fused, h, w)
        auxiliary = {
            f"level {number}": score(level)
            for number, (score, level) in enumerate(zip(self.level_scores, levels, strict=True), start=3)
        }
        for start in range(0, len(self.exchanges), 3):
            levels = [
                exchange(level, [other for other in levels if other is not level], said)
                for exchange, level in zip(self.exchanges[start : start + 3], levels, strict=True)
            ]
        return Prediction(self.score(self.walk(levels)), auxiliary)


class Kinds(nn.Module):
    """What each word is, as shares of `KINDS`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, len(KINDS)))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """words (B, T, C), mask (B, T) → (B, T, 4); the rows past a sentence's end are zero."""
        return self.layers(words).softmax(dim=2) * mask.unsqueeze(2)


class Comprehension(nn.Module):
    """One level: places that fit what is named, then places that stand in the relations between them."""

    def __init__(self, width: int, fused_width: int, heads: int) -> None:
        super().__init__()
        self.perceive = Mutan(width, width, width, heads)
        self.relate = PlaceGraph(width)
        self.join = nn.Conv2d(3 * width + COORDINATES, fused_width, 1)

    def forward(self, level: Tensor, words: Tensor, named: Tensor, relation: Tensor, mask: Tensor) -> Tensor:
        """level (B, C, h, w), words (B, T, C), named (B, C), relation and mask (B, T) → (B, fused, h, w)."""
        perceived = self.perceive(level, named)  # (B, C, h, w)
        related = self.relate(perceived, words, relation, mask)  # (B, C, h, w)
        tiled = named[:, :, None, None].expand_as(level)
        return self.join(torch.cat([perceived, related, tiled, coordinates(level)], dim=1)).relu()


class PlaceGraph(nn.Module):
    """A step of graph convolution over all places, which are neighbours by the relational words that they share.

        R = p_rel ∘ (U M)(Z w)ᵀ / √C,  adjacency = softmax_words(R) softmax_places(R)ᵀ

    Its product with the places is computed from right to left, so that no matrix is larger than places × words.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_places = nn.Linear(width, width)
        self.of_words = nn.Linear(width, width)
        self.update = nn.Linear(width, width)
        self.norms = nn.ModuleList(JointNorm(width) for _ in range(2))

    def forward(self, perceived: Tensor, words: Tensor, relation: Tensor, mask: Tensor) -> Tensor:
        """perceived (B, C, h, w), words (B, T, C), relation and mask (B, T) → (B, C, h, w) of length 1."""
        places = perceived.flatten(2).mT  # (B, hw, C)
        everywhere = torch.ones_like(places[:, :, 0], dtype=torch.bool)
        likeness = self.of_places(places) @ self.of_words(words).mT / places.shape[2] ** 0.5  # (B, hw, T)
        likeness = likeness * relation.unsqueeze(1)
        to_words = masked_softmax(likeness, mask.unsqueeze(1), dim=2)
        of_places = likeness.softmax(dim=1)
        told = to_words @ (of_places.mT @ places)  # (B, hw, C)
        moved = (places + self.norms[0](told, everywhere)).relu()
        moved = self.norms[1](self.update(moved), everywhere).relu()
        return F.normalize(moved, dim=2).mT.reshape(perceived.shape)


class Exchange(nn.Module):
    """What one level takes from the others in one round: the channels that its own places and the sentence open.

        c = W [Σ_p λ_p x_p; s], λ = softmax over the places p of (K x_p) · (Q s) / √C
        x + Σ_j relu(V_j x_j) ∘ σ(L_j c)

    with s the sentence; c and the result are scaled to length 1.
    """

    def __init__(self, width: int, said_width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(said_width, width)
        self.context = nn.Linear(width + said_width, width)
        self.values = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.opens = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, level: Tensor, others: list[Tensor], said: Tensor) -> Tensor:
        """level and two others (B, fused, h, w), said (B, C) → (B, fused, h, w)."""
        places = level.flatten(2).mT  # (B, hw, fused)
        likeness = self.key(places) @ self.query(said).unsqueeze(2) / places.shape[2] ** 0.5  # (B, hw, 1)
        pooled = (likeness.softmax(dim=1).mT @ places).squeeze(1)  # (B, fused)
        context = F.normalize(self.context(torch.cat([pooled, said], dim=1)), dim=1)
        received = [
            value(other).relu() * opens(context).sigmoid()[:, :, None, None]
            for value, opens, other in zip(self.values, self.opens, others, strict=True)
        ]
        return F.normalize(level + received[0] + received[1], dim=1)


def weighed_sum(words: Tensor, weights: Tensor) -> Tensor:
    """The direction of the words' sum: words (B, T, C), weights (B, T) → (B, C) of length 1."""
    return F.normalize((words * weights.unsqueeze(2)).sum(dim=1), dim=1)
