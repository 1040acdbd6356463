"""LSCM: what places say is gathered at the words, passed along the sentence's tree, and given back to the places.

Linguistic Structure Guided Context Modeling for Referring Image Segmentation, Hui et al., ECCV 2020.

Words that the tree does not join still hear each other, by a tenth (`SUPPRESSED`), as in the released code.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.convlstm import ConvLSTM
from refseg.models.parts.graph import JointNorm, edges, heads_of, masked_softmax
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, coordinates, start_xavier
from refseg.models.parts.lstm import ForgetLSTMEncoder
from refseg.models.parts.mutan import Mutan
from refseg.models.parts.unit_levels import build_unit_encoder

SUPPRESSED = 0.1
"""Factor of what a word hears from itself and from words that are neither its head nor depend on it."""


class LSCMConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "lscm"
    parses: ClassVar[bool] = True

    fused_width: int = 64
    """Channels of a level once it has met the sentence."""
    mutan_heads: int = 5

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("fused_width", "mutan_heads"))

    @classmethod
    def published(cls, **changes: Any) -> LSCMConfig:
        """The published network, with the vocabulary of UNC."""
        sizes = {"vocabulary": 21692, "max_words": 30, "word_size": 300, "width": 1000, "fused_width": 500}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class LSCM(ReferringNetwork):
    """Context on each of four levels, then a ConvLSTM that walks from deep to shallow and back."""

    config_class = LSCMConfig
    paper = "Linguistic Structure Guided Context Modeling for Referring Image Segmentation, ECCV 2020"
    config: LSCMConfig

    def __init__(self, config: LSCMConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_unit_encoder(config, halved=True)
        self.text_encoder = ForgetLSTMEncoder(
            config.vocabulary, config.word_size, config.width, config.dropout, freeze=config.freeze_words
        )
        self.contexts = nn.ModuleList(Context(config.width, config.fused_width, config.mutan_heads) for _ in range(4))
        self.walk = ConvLSTM(config.fused_width, config.grid)
        self.level_scores = nn.ModuleList(nn.Conv2d(config.fused_width, 1, 3, padding=1) for _ in range(4))
        self.score = nn.Conv2d(config.fused_width, 1, 3, padding=1)
        start_xavier(self.contexts, self.level_scores, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → four levels (I, C, h, w), each place of length 1."""
        return self.image_encoder(images, grid)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """Four levels of each expression's photograph, (B, C, h, w), and the sentences with their trees."""
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, C)
        sentence = F.normalize(greatest(words, tokens.mask), dim=1)  # (B, C)
        words = F.normalize(words, dim=2)
        heads = heads_of(tokens)
        levels = [
            context(level, words, sentence, heads, tokens.mask)
            for context, level in zip(self.contexts, features, strict=True)
        ]  # each (B, fused, h, w)
        auxiliary = {
            f"level {number}": score(level)
            for number, (score, level) in enumerate(zip(self.level_scores, levels, strict=True), start=2)
        }
        second, third, fourth, fifth = levels
        joint = self.walk([fifth, fourth, third, second, third, fourth, fifth])
        return Prediction(self.score(joint), auxiliary)


class Context(nn.Module):
    """One level: places that fit the sentence, and the context that the words' tree gives them."""

    def __init__(self, width: int, fused_width: int, heads: int) -> None:
        super().__init__()
        self.perceive = Mutan(width, width, width, heads)
        self.relate = WordGraph(width)
        self.join = nn.Conv2d(3 * width + COORDINATES, fused_width, 1)

    def forward(self, level: Tensor, words: Tensor, sentence: Tensor, heads: Tensor, mask: Tensor) -> Tensor:
        """level (B, C, h, w), words (B, T, C), sentence (B, C), heads and mask (B, T) → (B, fused, h, w)."""
        perceived = self.perceive(level, sentence)  # (B, C, h, w)
        related = self.relate(perceived, words, heads, mask)  # (B, C, h, w)
        tiled = sentence[:, :, None, None].expand_as(level)
        return self.join(torch.cat([perceived, related, tiled, coordinates(level)], dim=1)).relu()


class WordGraph(nn.Module):
    """A step of graph convolution over the words of a sentence, each of which stands for what it sees.

    B = softmax_places((K M)(Q w)ᵀ / √C)                       what each word looks at
    X = F.normalize(Bᵀ M)                                               gather: what it sees
    E = softmax_words((Q' X)(K' X)ᵀ / √C) ∘ tree               whom it hears
    Y = relu(LN(W relu(X + LN(E X))))                          message
    F.normalize(B Y)                                                    distribute
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_places, self.of_words, self.query, self.key, self.update = (nn.Linear(width, width) for _ in range(5))
        self.norms = nn.ModuleList(JointNorm(width) for _ in range(2))

    def forward(self, perceived: Tensor, words: Tensor, heads: Tensor, mask: Tensor) -> Tensor:
        """perceived (B, C, h, w), words (B, T, C), heads and mask (B, T) → (B, C, h, w) of length 1."""
        places = perceived.flatten(2).mT  # (B, hw, C)
        scale = places.shape[2] ** -0.5
        looks = (self.of_places(places) @ self.of_words(words).mT * scale).softmax(dim=1)  # (B, hw, T)
        seen = F.normalize(looks.mT @ places, dim=2)  # (B, T, C)
        hears = masked_softmax(self.query(seen) @ self.key(seen).mT * scale, mask.unsqueeze(1), dim=2)  # (B, T, T)
        edge = edges(heads, mask)
        hears = hears.where(edge | edge.mT, SUPPRESSED * hears)
        told = (seen + self.norms[0](hears @ seen, mask)).relu()
        told = self.norms[1](self.update(told), mask).relu()
        return F.normalize(looks @ told, dim=2).mT.reshape(perceived.shape)


def greatest(words: Tensor, mask: Tensor) -> Tensor:
    """The greatest value of each channel over a sentence's words, (B, T, C) → (B, C); 0 for a sentence without any."""
    there = mask.unsqueeze(2)
    return words.masked_fill(~there, -torch.inf).amax(dim=1).where(there.any(dim=1), 0.0)
