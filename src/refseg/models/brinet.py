"""BRINet: words for each place, then places for each place, then gates between the levels, both ways.

Bi-directional Relationship Inferring Network for Referring Image Segmentation, Hu et al., CVPR 2020.

Paper and released code differ in one product; see `BRINetConfig.weighs_places`. What a sentence lacks to `max_words`
takes part in the attention of places to words, as in the released code: as words of logit 0 that say nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, coordinates, start_xavier
from refseg.models.parts.lstm import ForgetLSTMEncoder
from refseg.models.parts.text_encoder import last_word
from refseg.models.parts.unit_levels import build_unit_encoder


class BRINetConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "brinet"

    relation_width: int = 64
    """Channels in which places are compared with each other."""
    aspp_rates: list[int] | tuple[int, ...] = (1, 3, 5, 7)
    aspp_width: int = 64
    """Channels of each of the dilated convolutions."""
    weighs_places: bool = False
    """Whether a place receives a mean of all places, weighed by shares that sum to 1, as the paper says.

    The released code sums over the other axis of the shares; which of the two made the published numbers is unknown.
    """

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("relation_width", "aspp_width"))
        if not self.aspp_rates or not all(isinstance(rate, int) and rate > 0 for rate in self.aspp_rates):
            raise RefsegError(f"aspp_rates is {self.aspp_rates!r}; give whole numbers from 1 up")

    @classmethod
    def published(cls, **changes: Any) -> BRINetConfig:
        """The published network, with the vocabulary of UNC."""
        sizes = {"vocabulary": 12112, "word_size": 1000, "width": 1000, "relation_width": 500, "aspp_width": 512}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class BRINet(ReferringNetwork):
    """Attention on each level, then `GBFM` between the levels."""

    config_class = BRINetConfig
    paper = "Bi-directional Relationship Inferring Network for Referring Image Segmentation, CVPR 2020"
    config: BRINetConfig

    def __init__(self, config: BRINetConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_unit_encoder(config)
        self.text_encoder = ForgetLSTMEncoder(
            config.vocabulary, config.word_size, config.width, config.dropout, freeze=config.freeze_words
        )
        self.relations = nn.ModuleList(Relations(config) for _ in range(3))
        self.level_scores = nn.ModuleList(nn.Conv2d(config.width, 1, 1) for _ in range(3))
        self.fusion = GatedFusion(config.width)
        self.score = nn.Conv2d(config.width, 1, 1)
        start_xavier(self.relations, self.level_scores, self.fusion, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → three levels (I, C, h, w), each place of length 1."""
        return self.image_encoder(images, grid)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """Three levels of each expression's photograph, (B, C, h, w), and the sentences → logits (B, 1, h, w)."""
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, C)
        sentence = last_word(words, tokens.mask)  # (B, C)
        levels = [
            relate(level, words, sentence, tokens.mask) for relate, level in zip(self.relations, features, strict=True)
        ]  # each (B, C, h, w)
        auxiliary = {
            f"level {number}": score(level)
            for number, (score, level) in enumerate(zip(self.level_scores, levels, strict=True), start=3)
        }
        return Prediction(self.score(self.fusion(levels)), auxiliary)


class Relations(nn.Module):
    """One level: what the words say to each place, and what places say to each other in the light of that."""

    def __init__(self, config: BRINetConfig) -> None:
        super().__init__()
        width, narrow = config.width, config.relation_width
        self.max_words, self.grid, self.weighs_places = config.max_words, config.grid, config.weighs_places
        inputs = 2 * width + COORDINATES
        self.seek_words, self.key, self.value, self.keep = (nn.Conv2d(inputs, width, 1) for _ in range(4))
        self.key_of_words = nn.Linear(width, narrow, bias=False)
        self.key_of_places = nn.Linear(width, narrow, bias=False)
        self.query = nn.Parameter(torch.empty(config.grid**2, narrow))
        nn.init.xavier_uniform_(self.query)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.aspp = ASPP(width, config.aspp_width, list(config.aspp_rates))

    def forward(self, level: Tensor, words: Tensor, sentence: Tensor, mask: Tensor) -> Tensor:
        """level (B, C, h, w), words (B, T, C), sentence (B, C), mask (B, T) → (B, C, h, w)."""
        h, w = level.shape[2:]
        tiled = sentence[:, :, None, None].expand_as(level)
        seen = torch.cat([tiled, level, coordinates(level)], dim=1)  # (B, 2C+8, h, w)
        heard = self.words_for_places(places_of(self.seek_words(seen).relu()), words, mask)  # (B, hw, C)
        keys = (self.key_of_words(heard) + self.key_of_places(places_of(self.key(seen).relu()))).tanh()
        shares = (self.queries(h, w) @ keys.mT).softmax(dim=2)  # (B, hw, hw)
        values = places_of(self.value(seen).relu())
        received = (shares if self.weighs_places else shares.mT) @ values  # (B, hw, C)
        both = torch.cat([received, heard], dim=2).mT.reshape(len(level), -1, h, w)  # (B, 2C, h, w)
        return self.aspp(self.join(both).relu() + self.keep(seen).relu())

    def words_for_places(self, places: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """The mean of the words, weighed by each place: places (B, hw, C), words (B, T, C) → (B, hw, C)."""
        logits = (places @ words.mT).masked_fill(~mask.unsqueeze(1), -torch.inf)  # (B, hw, T)
        # What a sentence lacks stands for as many words of logit 0 that say nothing.
        lacking = (self.max_words - mask.sum(dim=1)).clamp(min=0).log()[:, None, None]
        shares = torch.cat([logits, lacking.expand(*logits.shape[:2], 1)], dim=2).softmax(dim=2)
        return shares[:, :, :-1] @ words

    def queries(self, h: int, w: int) -> Tensor:
        """The learnt query of each place, (hw, narrow); on another grid than the config's, what lies between them."""
        if (h, w) == (self.grid, self.grid):
            return self.query
        square = self.query.mT.reshape(1, -1, self.grid, self.grid)
        return F.interpolate(square, size=(h, w), mode="bilinear", align_corners=False)[0].flatten(1).mT


class ASPP(nn.Module):
    """Dilated 3×3 convolutions next to each other, mixed with their input by a 1×1."""

    def __init__(self, width: int, narrow: int, rates: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(width, narrow, 3, padding=rate, dilation=rate) for rate in rates)
        self.mix = nn.Conv2d(len(rates) * narrow + width, width, 1)

    def forward(self, joint: Tensor) -> Tensor:
        return self.mix(torch.cat([*(branch(joint) for branch in self.branches), joint], dim=1)).relu()


class GatedFusion(nn.Module):
    """Gated bi-directional fusion: from shallow to deep and from deep to shallow, then a 3×3 convolution of the sum.

    On each way the first level enters the second and the second the third; then the former result enters the latter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bottom_up = nn.ModuleList(Entry(width) for _ in range(3))
        self.top_down = nn.ModuleList(Entry(width) for _ in range(3))
        self.join = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Three levels (B, C, h, w), shallow to deep → (B, C, h, w)."""
        ends = [
            last(first(start, middle), second(middle, end))
            for (first, second, last), (start, middle, end) in (
                (self.bottom_up, levels),
                (self.top_down, levels[::-1]),
            )
        ]
        return self.join(ends[0] + ends[1]).relu()


class Entry(nn.Module):
    """One level enters another through a gate that both decide: σ(conv 3×3 of relu(conv 1×1 of [x; y])) ∘ x + y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.meet = nn.Conv2d(2 * width, width, 1)
        self.gate = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        joint = self.meet(torch.cat([source, target], dim=1)).relu()
        return self.gate(joint).sigmoid() * source + target


def places_of(level: Tensor) -> Tensor:
    """(B, C, h, w) → (B, hw, C)."""
    return level.flatten(2).mT
