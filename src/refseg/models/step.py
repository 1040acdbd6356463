"""STEP: a heatmap and the sentence refine each other, fold by fold.

See-Through-Text Grouping for Referring Image Segmentation, Chen et al., ICCV 2019.

There is no public code, so this is the network "from the paper's text". The text fixes the loop. Attention over the
words makes a sentence; its likeness to each place is a heatmap; a convolutional RNN refines the heatmap; and what the
refined one shows steers the attention over the words of the next fold. It also fixes five folds, a ResNet-101 of
DeepLab at 320 pixels, and that each fold's refined map is compared with the mask. All else is decided here:

- Words are GloVe vectors, read by a GRU from both ends, 2 × 512 channels.
- The folds see the levels 5, 4, 3, 4, 5, from deep to shallow and back. A level has 1,000 channels of length 1 at each
  place, and the coordinates of the place behind them.
- Places and sentences are compared in 400 channels, by the cosine of tanh(A x) and tanh(B r); what is negative counts
  as 0.
- The convolutional RNN is a GRU of kernel 3×3 with 500 channels that starts from zero. Its state makes the refined
  heatmap by a 1×1 convolution.
- What the refined heatmap shows is the mean of the fold's level, weighted by the heatmap.
- All folds share their weights, but for what makes a level of a map of the backbone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.graph import masked_softmax
from refseg.models.parts.gru import TwoWayGRU
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, build_raw_encoder, start_xavier, with_coordinates

WALK = (2, 1, 0, 1)
"""The level that each fold sees, of three from shallow to deep, and from the beginning again."""


class STEPConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "step"

    folds: int = 5
    """How often heatmap and sentence refine each other."""
    text_width: int = 128
    """Channels of a word that has read its sentence from both ends; an even number."""
    seen_width: int = 128
    """Channels of a level before it meets the words."""
    common_width: int = 64
    """Channels in which places and sentences are compared."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("folds", "text_width", "seen_width", "common_width"))
        if self.text_width % 2:
            raise RefsegError(f"text_width is {self.text_width}; give an even number")

    @classmethod
    def paper(cls, **changes: Any) -> STEPConfig:
        """The sizes that the paper's text gives or, where it is silent, that are decided here; five folds."""
        sizes = {"vocabulary": 12112, "word_size": 300, "text_width": 1024, "seen_width": 1000, "common_width": 400}
        return cls(**{**DEEPLAB_320, **sizes, "width": 500, **changes})


class STEP(ReferringNetwork):
    """See-through-text embedding pixelwise: one mask logit a cell."""

    config_class = STEPConfig
    paper = "See-Through-Text Grouping for Referring Image Segmentation, ICCV 2019"
    config: STEPConfig

    def __init__(self, config: STEPConfig) -> None:
        super().__init__(config)
        seen = config.seen_width + COORDINATES
        self.image_encoder = build_raw_encoder(config)
        self.text_encoder = TwoWayWords(config)
        self.levels = nn.ModuleList(nn.Conv2d(c, config.seen_width, 1) for c in self.image_encoder.backbone.channels)
        self.of_places = nn.Conv2d(seen, config.common_width, 1)
        self.of_sentence = nn.Linear(config.text_width, config.common_width)
        self.choose = WordAttention(config.text_width, seen, config.common_width)
        self.refine = ConvGRU(seen, 1, config.width)
        self.score = nn.Conv2d(config.width, 1, 1)
        start_xavier(self.levels, self.of_places, self.of_sentence, self.choose, self.refine, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → per level what it gives to the likeness, the attention and the GRU."""
        features: list[Tensor] = []
        for convolve, level in zip(self.levels, self.image_encoder(images, grid), strict=True):
            x = with_coordinates(F.normalize(convolve(level), dim=1))  # (I, seen_width + 8, h, w)
            features += [F.normalize(self.of_places(x).tanh(), dim=1), self.choose.see(x), self.refine.see(x)]
        return tuple(features)

    def places(self, features: Features) -> Tensor:
        """What a new state takes from the three levels, (I, C, h, w)."""
        return torch.stack([part.chunk(3, dim=1)[2] for part in features[2::3]]).sum(dim=0)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """The features of each expression's photograph, 9 × (B, …, h, w), and the sentences → mask logits.

        `auxiliary` has the refined heatmap of each fold but the last.
        """
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, text_width)
        b, _, h, w = features[0].shape
        state = features[0].new_zeros(b, self.config.width, h, w)
        shown = None  # what the last fold's heatmap shows, (B, common_width)
        folds = []
        for fold in range(self.config.folds):
            level = 3 * WALK[fold % len(WALK)]
            places, to_words, to_state = features[level : level + 3]
            sentence = F.normalize(self.of_sentence(self.choose(words, tokens.mask, shown)).tanh(), dim=1)
            heat = torch.einsum("bchw,bc->bhw", places, sentence).relu().unsqueeze(1)  # (B, 1, h, w)
            state = self.refine(to_state, heat, state)  # (B, C, h, w)
            folds.append(self.score(state))  # (B, 1, h, w)
            refined = folds[-1].sigmoid()
            shown = (refined * to_words).sum(dim=(2, 3)) / refined.sum(dim=(2, 3)).clamp(min=1e-6)
        return Prediction(folds[-1], {f"fold {number}": logits for number, logits in enumerate(folds[:-1], start=1)})


class TwoWayWords(nn.Module):
    """Word embedding, then a GRU from both ends."""

    def __init__(self, config: STEPConfig) -> None:
        super().__init__()
        self.width = config.text_width
        self.embedding = nn.Embedding(config.vocabulary, config.word_size, padding_idx=0)
        self.embedding.weight.requires_grad_(not config.freeze_words)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = TwoWayGRU(config.word_size, config.text_width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T) True at words → (B, T, width); rows past a sentence's end are zero."""
        return self.gru(self.dropout(self.embedding(ids)), mask)


class WordAttention(nn.Module):
    """A sentence as a mean of its words: softmax over the words n of u · tanh(W h_n + W' x), x what was seen before.

    W' is linear, so that it is applied to each place of a level before their mean is taken.
    """

    def __init__(self, text_width: int, seen: int, inner: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(seen, inner, 1, bias=False)
        self.hear = nn.Linear(text_width, inner)
        self.weigh = nn.Linear(inner, 1, bias=False)

    def forward(self, words: Tensor, mask: Tensor, shown: Tensor | None) -> Tensor:
        """words (B, T, text_width), mask (B, T), shown = W' x (B, inner) or None → (B, text_width)."""
        heard = self.hear(words)  # (B, T, inner)
        if shown is not None:
            heard = heard + shown.unsqueeze(1)
        shares = masked_softmax(self.weigh(heard.tanh()).squeeze(2), mask, dim=1)
        return torch.einsum("bt,btc->bc", shares, words)


class ConvGRU(nn.Module):
    """A GRU of 3×3 convolutions over [x; e; state], with x what is seen and e what is new; x is convolved once:

    z, r = σ(conv [x; e; state]);  n = tanh(conv [x; e; r ∘ state]);  state' = (1 − z) ∘ state + z ∘ n
    """

    def __init__(self, seen: int, new: int, width: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(seen, 3 * width, 3, padding=1)
        self.gates = nn.Conv2d(new + width, 2 * width, 3, padding=1, bias=False)
        self.candidate = nn.Conv2d(new + width, width, 3, padding=1, bias=False)

    def forward(self, seen: Tensor, new: Tensor, state: Tensor) -> Tensor:
        """seen = see(x) (B, 3·C, h, w), new (B, new, h, w), state (B, C, h, w) → the next state, (B, C, h, w)."""
        update_seen, reset_seen, candidate_seen = seen.chunk(3, dim=1)
        update, reset = self.gates(torch.cat([new, state], dim=1)).chunk(2, dim=1)
        reset = (reset_seen + reset).sigmoid()
        candidate = (candidate_seen + self.candidate(torch.cat([new, reset * state], dim=1))).tanh()
        update = (update_seen + update).sigmoid()
        return (1 - update) * state + update * candidate
