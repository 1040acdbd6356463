"""RRN: the sentence meets the deepest map; a ConvLSTM then takes in one map after the other, from deep to shallow.

Referring Image Segmentation via Recurrent Refinement Networks, Li et al., CVPR 2018.

Where paper and released code differ, this is the code: the walk is a ConvLSTM of kernel 1×1 with layer normalisation
and peepholes, and what it starts from is its first input instead of its first state.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.convlstm import ConvLSTM
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, build_raw_encoder, start_xavier, with_coordinates
from refseg.models.parts.lstm import ForgetLSTMEncoder
from refseg.models.parts.text_encoder import last_word


class RRNConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "rrn"

    text_width: int = 128
    """Channels of the sentence, and of the deepest map where they meet."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("text_width",))

    @classmethod
    def published(cls, **changes: Any) -> RRNConfig:
        """The sizes of the released code, with its vocabulary for UNC, UNC+ and G-Ref."""
        sizes = {"vocabulary": 12112, "word_size": 1000, "text_width": 1000, "width": 500}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class RRN(ReferringNetwork):
    """Recurrent refinement: one mask logit a cell."""

    config_class = RRNConfig
    paper = "Referring Image Segmentation via Recurrent Refinement Networks, CVPR 2018"
    config: RRNConfig

    def __init__(self, config: RRNConfig) -> None:
        super().__init__(config)
        text_width, width = config.text_width, config.width
        self.image_encoder = build_raw_encoder(config)
        channels = self.image_encoder.backbone.channels
        self.text_encoder = ForgetLSTMEncoder(
            config.vocabulary, config.word_size, text_width, config.dropout, freeze=config.freeze_words
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.deepest = nn.Conv2d(channels[-1], text_width, 1)
        # One convolution over [map; sentence; coordinates], in two parts, of which no word touches the first.
        self.see = nn.Conv2d(text_width + COORDINATES, width, 1)
        self.hear = nn.Linear(text_width, width, bias=False)
        self.refine = ConvLSTM(width, config.grid)
        self.score = nn.Conv2d(width, 1, 3, padding=1)
        start_xavier(self.laterals, self.deepest, self.see, self.hear, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → three laterals and what the joint map takes from the deepest, (I, C, h, w)."""
        levels = self.image_encoder(images, grid)
        laterals = [lateral(level).relu() for lateral, level in zip(self.laterals, levels, strict=True)]
        deepest = F.normalize(self.deepest(levels[-1]), dim=1)  # (I, text_width, h, w)
        return (*laterals, self.see(with_coordinates(deepest)))

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """The features of each expression's photograph, 4 × (B, C, h, w), and the sentences → mask logits."""
        third, fourth, fifth, seen = features
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, text_width)
        sentence = F.normalize(last_word(words, tokens.mask), dim=1)
        joint = (seen + self.hear(sentence)[:, :, None, None]).relu()  # (B, C, h, w)
        return Prediction(self.score(self.refine([joint, fifth, fourth, third])))  # (B, 1, h, w)
