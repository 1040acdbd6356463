"""EFN: the sentence enters the image encoder itself, at its last three stages; a decoder then sharpens the outline.

Encoder Fusion Network with Co-Attention Embedding for Referring Image Segmentation, Feng et al., CVPR 2021.

A photograph is encoded up to the first stage that hears of the sentence; the two stages behind it run again for each
sentence. Where paper and released code differ, this is the code: the co-attention is its symmetric form. What differs
from the code, or is not known of it, is decided here:

- The backbone is the ResNet-101 of the paper, where the code has one of twice the width.
- Normalisation over words leaves padding out.
- The sizes of the heads that serve the losses on the way are inferred from the code's count of weights, which they
  complete.
- Down-sampling in `Split` pads by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.parts.graph import masked_softmax
from refseg.models.parts.gru import TwoWayGRU
from refseg.models.parts.lateral import COORDINATES, build_raw_encoder, with_coordinates
from refseg.models.parts.stages import channels_of, stages_of
from refseg.models.parts.text_encoder import last_word

FUSED = 3
"""Stages of the backbone, the last ones, whose maps hear of the sentence."""


class EFNConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "efn"
    magnification: ClassVar[int] = 8

    width: int = 64
    """Channels where places and words meet, a multiple of 16. The decoder has a sixteenth of it at the end."""

    def check(self) -> None:
        super().check()
        if self.width % 16:
            raise RefsegError(f"width is {self.width}; give a multiple of 16")
        if self.image_size != 16 * self.grid:
            raise RefsegError(
                f"grid is {self.grid} and image_size {self.image_size}; here a cell is 16 pixels, so that the mask has "
                f"half of image_size: give grid {self.image_size // 16} and image_size {self.image_size // 16 * 16}"
            )

    @classmethod
    def published(cls, **changes: Any) -> EFNConfig:
        """The sizes of the released code, with its vocabulary for UNC, but for the backbone, which is the paper's."""
        sizes: dict[str, Any] = {
            "backbone_config": {"model_type": "resnet", "depths": [3, 4, 23, 3], "layer_type": "bottleneck"},
            "output_stride": 16,
            "freeze_backbone": False,
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
            "image_size": 320,
            "letterbox": True,
            "grid": 20,
            "vocabulary": 12112,
            "max_words": 20,
            "word_size": 512,
            "width": 512,
            "dropout": 0.0,
        }
        return cls(**{**sizes, **changes})


class EFN(ReferringNetwork):
    """Encoder fusion and a decoder with boundary enhancement: a mask logit for two pixels by two."""

    config_class = EFNConfig
    paper = "Encoder Fusion Network with Co-Attention Embedding for Referring Image Segmentation, CVPR 2021"
    config: EFNConfig

    def __init__(self, config: EFNConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_raw_encoder(config)
        stages_of(self.image_encoder.backbone)  # or a RefsegError
        channels = channels_of(self.image_encoder.backbone)
        self.pixels = nn.BatchNorm2d(3)
        self.text_encoder = EFNWords(config.vocabulary, config.word_size, config.width, freeze=config.freeze_words)
        self.context = Context(config.width)
        self.third, self.fourth, self.fifth = (EncoderFusion(c, config.width) for c in channels[-FUSED:])
        self.decoder = BoundaryDecoder(channels, config.width)
        self.post_init()

    def train(self, mode: bool = True) -> EFN:
        """The stages behind a fusion learn the statistics of what they read, which is not what they were trained on."""
        super().train(mode)
        for stage in stages_of(self.image_encoder.backbone)[1 - FUSED :]:
            stage.train(mode)
        return self

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → the maps of all stages up to the first fused one, shallow to deep, and what its
        fusion sees of it; the grid is that of the photographs."""
        stages = stages_of(self.image_encoder.backbone)[: 1 - FUSED]
        level = self.pixels(images)  # in place of fixed statistics
        maps = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            for stage in stages:
                level = stage(level)
                maps.append(level)
        return (*maps, self.third.see(level))

    def places(self, features: Features) -> Tensor:
        """What the first fusion sees, (I, C, h, w)."""
        return features[-1]

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """The features of each expression's photograph and the sentences → mask logits.

        `auxiliary` has the logits of each coarser scale, and of what lies inside the outline; `outlines` the outline's.
        """
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, C)
        sentence = self.text_encoder.sentence(words, tokens.mask)  # (B, 2·C)
        contexts, sentence = self.context(words, sentence, tokens.mask)
        *maps, seen = features
        maps[-1] = self.third(maps[-1], seen, contexts[0], sentence, tokens.mask)
        later = stages_of(self.image_encoder.backbone)[1 - FUSED :]
        for stage, fusion, context in zip(later, (self.fourth, self.fifth), contexts[1:], strict=True):
            level = stage(maps[-1])
            maps.append(fusion(level, fusion.see(level), context, sentence, tokens.mask))
        prediction: Prediction = self.decoder(maps)
        return prediction


class EFNWords(nn.Module):
    """Word embedding and one layer behind it; a GRU from both ends makes a sentence of the words."""

    def __init__(self, vocabulary: int, word_size: int, width: int, *, freeze: bool) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, word_size, padding_idx=0)
        self.embedding.weight.requires_grad_(not freeze)
        self.layer = nn.Linear(word_size, width)
        self.gru = TwoWayGRU(width, 2 * width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T) True at words → (B, T, width); rows past a sentence's end are zero."""
        return self.layer(self.embedding(ids)).relu() * mask.unsqueeze(2)

    def sentence(self, words: Tensor, mask: Tensor) -> Tensor:
        """words (B, T, width), mask (B, T) → what the GRU knows at the last word, (B, 2·width).

        As in the released code, its way back has read no other word by then.
        """
        return last_word(self.gru(words, mask), mask)


class Context(nn.Module):
    """Words and sentence as the fusions read them: the words in a form for each, all of length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shared = LinearNorm(width, width)
        self.of_words = nn.ModuleList(LinearNorm(width, width) for _ in range(FUSED))
        self.of_sentence = LinearNorm(2 * width, width)

    def forward(self, words: Tensor, sentence: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """words (B, T, C), sentence (B, 2·C), mask (B, T) → for each fusion (B, T, C), and the sentence (B, C)."""
        # Padding would count in the statistics of training; where there are none it may stay.
        shared = self.shared(words[mask] if self.training else words.flatten(0, 1))  # (N, C)
        contexts = [in_sentences(F.normalize(part(shared), dim=1), mask) for part in self.of_words]
        return contexts, F.normalize(self.of_sentence(sentence), dim=1)


def in_sentences(rows: Tensor, mask: Tensor) -> Tensor:
    """All words, or those that are there, (N, C) → (B, T, C); rows past a sentence's end are zero."""
    if rows.shape[0] == mask.numel():
        return rows.view(*mask.shape, -1) * mask.unsqueeze(2)
    words = rows.new_zeros(*mask.shape, rows.shape[1])
    words[mask] = rows
    return words


class LinearNorm(nn.Module):
    """A linear layer, batch norm and a rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (N, inputs) → (N, outputs)."""
        x, norm = self.linear(rows), self.norm
        if self.training and len(rows) == 1:  # which has no statistics of its own
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()
        return norm(x).relu()


class ConvNorm(nn.Sequential):
    """A 3×3 convolution, batch norm and a rectifier with one learned slope."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.PReLU())


class EncoderFusion(nn.Module):
    """A map of the backbone meets the words, and the backbone goes on with the result.

    With u the places, each by the sentence too, and E the mean of the words that each place attends to, co-attention
    exchanges the two by S_ij = (W_e u_i) · (W_q E_j):

        E'_j = conv Σ_i softmax_j(S_ij) E_i,  u'_i = conv Σ_j softmax_i(S_ij) u_j

    The sums run over the place that the softmax does not, as the products of the released code do. What comes out has
    the channels of the map, and is added to it; both have length 1 at each place.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.of_level = ConvNorm(channels, width)
        self.with_sentence = ConvNorm(2 * width + COORDINATES, width)
        self.query = nn.Conv2d(width, width, 1)
        self.of_places = nn.Conv2d(width, width // 2, 1, bias=False)
        self.of_words = nn.Conv2d(width, width // 2, 1, bias=False)
        self.to_words = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.to_places = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.back = ConvNorm(2 * width, channels)
        for layer in (self.of_places, self.of_words, self.to_words, self.to_places):
            nn.init.normal_(layer.weight, std=0.01)

    def see(self, level: Tensor) -> Tensor:
        """level (B, channels, h, w) → what no word touches, (B, C, h, w)."""
        return F.normalize(self.of_level(level), dim=1)

    def forward(self, level: Tensor, seen: Tensor, words: Tensor, sentence: Tensor, mask: Tensor) -> Tensor:
        """level (B, channels, h, w), seen = see(level), words (B, T, C), sentence (B, C), mask (B, T) → as level."""
        tiled = sentence[:, :, None, None].expand_as(seen)
        places = F.normalize(self.with_sentence(with_coordinates(torch.cat([seen, tiled], dim=1))), dim=1)
        heard = self.hear(places, words, mask)
        likeness = self.of_places(places).flatten(2).mT @ self.of_words(heard).flatten(2)  # (B, i, j)
        to_words = (heard.flatten(2) @ likeness.softmax(dim=2)).view_as(heard)
        to_places = (places.flatten(2) @ likeness.softmax(dim=1).mT).view_as(places)
        exchanged = torch.cat([self.to_places(to_places), self.to_words(to_words)], dim=1)
        back = self.back(F.normalize(exchanged, dim=1))
        return F.normalize(level, dim=1) + F.normalize(back, dim=1)

    def hear(self, places: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """The mean of the words that each place attends to, (B, C, h, w)."""
        shares = masked_softmax(words @ self.query(places).flatten(2), mask.unsqueeze(2), dim=1)  # (B, T, hw)
        return (words.mT @ shares).view_as(places)


class BoundaryDecoder(nn.Module):
    """From the deepest map to the shallowest, each of which takes body and edge apart and adds its own detail."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        widths = [width >> (len(channels) - 1 - i) for i in range(len(channels))]  # shallow to deep
        self.narrow = nn.ModuleList(ConvNorm(c, w) for c, w in zip(channels, widths, strict=True))
        self.start = ConvNorm(width, width // 2)
        down = [*widths[-2::-1], widths[0]]  # the channels that each scale reads, and those of the last result
        self.scales = nn.ModuleList(Scale(c, after) for c, after in pairwise(down))

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        """The maps of all stages, shallow to deep → logits at the side of the shallowest, and those on the way."""
        *shallow, deepest = (narrow(level) for narrow, level in zip(self.narrow, maps, strict=True))
        x = self.start(deepest)
        finals: dict[str, Tensor] = {}
        bodies: dict[str, Tensor] = {}
        outlines: dict[str, Tensor] = {}
        for number, (scale, detail) in enumerate(zip(self.scales, reversed(shallow), strict=True), start=1):
            x, finals[f"scale {number}"], bodies[f"body {number}"], outlines[f"outline {number}"] = scale(x, detail)
        _, mask_logits = finals.popitem()
        return Prediction(mask_logits, {**finals, **bodies}, outlines=outlines)


class Scale(nn.Module):
    """One step of the decoder: what was decoded is split, and its edge is drawn with the detail of this scale."""

    OUTLINE = 24

    def __init__(self, width: int, after: int) -> None:
        super().__init__()
        self.split = Split(width)
        self.edge = nn.Conv2d(2 * width, width, 1, bias=False)
        self.join = ConvNorm(2 * width, after)
        self.final = nn.Conv2d(after, 1, 3, padding=1)
        self.body_head = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.PReLU(),
            nn.Conv2d(width, 1, 3, padding=1, bias=False),
        )
        self.edge_head = nn.Sequential(
            ConvNorm(width, self.OUTLINE), nn.Conv2d(self.OUTLINE, 1, 3, padding=1, bias=False)
        )

    def forward(self, x: Tensor, detail: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, C, any, any), detail (B, C, h, w) → the next x (B, after, h, w), and logits of mask, body and edge."""
        parts = (x, *self.split(x))
        up, body, edge = (F.interpolate(part, detail.shape[2:], mode="bilinear") for part in parts)
        edge = self.edge(torch.cat([edge, detail], dim=1))
        x = self.join(torch.cat([up, edge + body], dim=1))
        return x, self.final(x), self.body_head(body), self.edge_head(edge)


class Split(nn.Module):
    """Body and edge of a map: the body is the map, moved as a whole by an affine map of its own finding; the edge is
    what remains. The affine map is the identity at first."""

    INNER = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(*(part for _ in range(2) for part in self.halving(width)))
        self.flow = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        last = nn.Linear(self.INNER, 6)
        nn.init.zeros_(last.weight)
        last.bias = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
        self.affine = nn.Sequential(nn.Linear(width, self.INNER), nn.ReLU(), last)

    @staticmethod
    def halving(width: int) -> tuple[nn.Module, ...]:
        """A convolution of each channel by itself, with stride 2."""
        return nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, h, w) → body and edge, each (B, C, h, w); they add up to x."""
        coarse = F.interpolate(self.down(x), x.shape[2:], mode="bilinear")
        flow = self.flow(torch.cat([x, coarse], dim=1)).mean(dim=(2, 3))  # (B, C)
        affine = self.affine(flow).view(-1, 2, 3)
        places = F.affine_grid(affine, list(x.shape), align_corners=False)
        body = F.grid_sample(x, places.to(x.dtype), align_corners=False)
        return body, x - body
