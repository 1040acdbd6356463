"""BUSNet: regions are found word by word, from the leaves of the sentence's tree up to what it means.

Bottom-Up Shift and Reasoning for Referring Image Segmentation, Yang et al., CVPR 2021.

There is no public code, so this network is "from the paper's text". The text fixes two modules, the backbone and the
size of the input. Bottom-Up Shift locates the referent along the steps of reasoning that the expression implies; each
step tells similar regions apart by how they lie to regions found before. Bidirectional Attentive Refinement lets three
levels pass messages both ways. All else is decided here:

- The graph of the sentence is its dependency tree. Every word is a node, and every word but the root has one edge, to
  its head. Heads do not tell noun phrases from the words that relate them; a relation such as "in front of" is
  therefore a path of nodes. The referent is the root.
- A node starts with a region of its own (`Regions`), whether its word is "red" or "bag".
- A step moves the region of a word to where its head must lie. It is a convolution with one filter of 15×15, which a
  softmax mixes from nine learnt ones by the states of both words. A filter's weights sum to 1. The nine start as one
  that leaves the region where it is, and eight that move it by a third of their reach.
- The region of a head is multiplied by the mean of what its words move to it, and scaled so that its largest value
  is 1.
- Each level reasons by itself, with weights of its own.
- What a message brings is gated per place by its sender (3×3) and per channel by its sender's mean and the sentence.
- 512 channels. The sentence is the state of the LSTM after the last word. Places know where they are
  (`lateral.coordinates`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.graph import depths, edges, heads_of
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, coordinates, start_xavier
from refseg.models.parts.lstm import ForgetLSTMEncoder
from refseg.models.parts.text_encoder import last_word
from refseg.models.parts.unit_levels import build_unit_encoder


class BUSNetConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "busnet"
    parses: ClassVar[bool] = True

    reach: int = 7
    """How far one step can move a region, in cells. A filter has 2·reach + 1 weights along each side."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("reach",), 1, 64)

    @classmethod
    def published(cls, **changes: Any) -> BUSNetConfig:
        """The published network, at the sizes that are decided here."""
        sizes = {"vocabulary": 12112, "word_size": 300, "width": 512}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class BUSNet(ReferringNetwork):
    """Reasoning on each level, then messages between the levels."""

    config_class = BUSNetConfig
    paper = "Bottom-Up Shift and Reasoning for Referring Image Segmentation, CVPR 2021"
    config: BUSNetConfig

    def __init__(self, config: BUSNetConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_unit_encoder(config)
        self.text_encoder = ForgetLSTMEncoder(
            config.vocabulary, config.word_size, config.width, config.dropout, freeze=config.freeze_words
        )
        self.reasoning = nn.ModuleList(BottomUpShift(config.width, config.reach, config.max_words) for _ in range(3))
        self.refinement = Refinement(config.width)
        self.score = nn.Conv2d(config.width, 1, 3, padding=1)
        start_xavier(self.reasoning, self.refinement, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → three levels (I, C, h, w), each place of length 1."""
        return self.image_encoder(images, grid)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """Three levels of each expression's photograph, (B, C, h, w), and the sentences with their trees."""
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, C)
        sentence = last_word(words, tokens.mask)  # (B, C)
        heads = heads_of(tokens)
        levels = [
            reason(level, words, sentence, heads, tokens.mask)
            for reason, level in zip(self.reasoning, features, strict=True)
        ]  # each (B, C, h, w)
        return Prediction(self.score(self.refinement(levels, sentence)))  # (B, 1, h, w)


class BottomUpShift(nn.Module):
    """One level: the region of the referent, found along the tree, and the level with that region marked."""

    def __init__(self, width: int, reach: int, max_words: int) -> None:
        super().__init__()
        self.max_words = max_words
        self.join = nn.Conv2d(2 * width + COORDINATES, width, 1)
        self.regions = Regions(width)
        self.shift = Shift(width, reach)

    def forward(self, level: Tensor, words: Tensor, sentence: Tensor, heads: Tensor, mask: Tensor) -> Tensor:
        """level (B, C, h, w), words (B, T, C), sentence (B, C), heads and mask (B, T) → (B, C, h, w)."""
        tiled = sentence[:, :, None, None].expand_as(level)
        joint = self.join(torch.cat([level, tiled, coordinates(level)], dim=1)).relu()
        regions = self.reason(self.regions(joint, words), words, heads, mask)  # (B, T, h, w)
        is_root = depths(heads, mask) == 0
        referent = (regions * is_root[:, :, None, None]).sum(dim=1, keepdim=True)
        return joint * referent + joint

    def reason(self, regions: Tensor, words: Tensor, heads: Tensor, mask: Tensor) -> Tensor:
        """The regions (B, T, h, w) of all words after each has heard of those that depend on it, the deepest first."""
        depth, edge = depths(heads, mask), edges(heads, mask)
        mix = self.shift.mix(words, heads)  # (B, T, 9)
        # A graph for another runtime cannot look at the trees while it is written: it takes the steps of the deepest.
        deepest = self.max_words - 1 if torch.compiler.is_exporting() else int(depth.max())
        for step in range(deepest, 0, -1):
            moved = self.shift(regions, mix)
            speaks = (edge & (depth == step).unsqueeze(2)).to(regions.dtype)  # (B, T, T), words by rows
            count = speaks.sum(dim=1)[:, :, None, None]
            told = torch.einsum("bwn,bwyx->bnyx", speaks, moved) / count.clamp(min=1)
            product = regions * told
            scaled = product / product.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)
            regions = torch.where(count > 0, scaled, regions)
        return regions


class Regions(nn.Module):
    """Where each word could be, on its own: σ(w · (tanh(places) ∘ tanh(word)) + b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_places = nn.Conv2d(width, width, 1)
        self.of_words = nn.Linear(width, width)
        self.weigh = nn.Linear(width, 1)

    def forward(self, joint: Tensor, words: Tensor) -> Tensor:
        """joint (B, C, h, w), words (B, T, C) → (B, T, h, w) in 0..1."""
        places = self.of_places(joint).tanh().flatten(2)  # (B, C, hw)
        weighed = self.of_words(words).tanh() * self.weigh.weight  # (B, T, C)
        return (weighed @ places + self.weigh.bias).sigmoid().view(*words.shape[:2], *joint.shape[2:])


class Shift(nn.Module):
    """Moves a region to where another must lie, by what the words of both say."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.choose = nn.Linear(2 * width, len(DIRECTIONS))
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
        step = max(reach / 3, 1)
        logits = [
            -((offsets[:, None] + y * step).square() + (offsets[None] + x * step).square()) / (2 * (step / 2) ** 2)
            for y, x in DIRECTIONS  # what takes from above moves down
        ]
        self.bank = nn.Parameter(torch.stack(logits))  # (9, k, k)

    def mix(self, words: Tensor, heads: Tensor) -> Tensor:
        """words (B, T, C), heads (B, T) → the shares of the filters that move each word's region, (B, T, 9)."""
        of_heads = words.gather(1, heads.unsqueeze(2).expand_as(words))
        return self.choose(torch.cat([words, of_heads], dim=2)).softmax(dim=2)

    def forward(self, regions: Tensor, mix: Tensor) -> Tensor:
        """regions (B, T, h, w), mix (B, T, 9) → the regions moved, (B, T, h, w); what leaves the map is lost."""
        filters = self.bank.flatten(1).softmax(dim=1).view_as(self.bank).unsqueeze(1)  # (9, 1, k, k)
        moved = F.conv2d(regions.flatten(0, 1).unsqueeze(1), filters, padding=self.reach)  # (B·T, 9, h, w)
        return (moved * mix.flatten(0, 1)[:, :, None, None]).sum(dim=1).view_as(regions)


DIRECTIONS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
"""Where a fresh filter moves a region: down and to the right are positive."""


class Refinement(nn.Module):
    """Bidirectional Attentive Refinement: messages from deep to shallow and from shallow to deep, then one map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(Message(width) for _ in range(2))
        self.up = nn.ModuleList(Message(width) for _ in range(2))
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, levels: list[Tensor], sentence: Tensor) -> Tensor:
        """Three levels (B, C, h, w), shallow to deep, and the sentence (B, C) → (B, C, h, w)."""
        ends = []
        for messages, (first, second, third) in ((self.down, levels[::-1]), (self.up, levels)):
            second = messages[0](first, second, sentence)
            ends.append(messages[1](second, third, sentence))
        return self.join(torch.cat(ends, dim=1)).relu()


class Message(nn.Module):
    """What one level tells another: a value, gated per place by the sender and per channel by the sentence too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(width, width, 3, padding=1)
        self.value = nn.Conv2d(width, width, 1)
        self.channels = nn.Sequential(nn.Linear(2 * width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))

    def forward(self, source: Tensor, target: Tensor, sentence: Tensor) -> Tensor:
        channels = self.channels(torch.cat([source.mean(dim=(2, 3)), sentence], dim=1)).sigmoid()
        return target + self.gate(source).sigmoid() * channels[:, :, None, None] * self.value(source)
