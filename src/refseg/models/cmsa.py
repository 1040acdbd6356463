"""CMSA: every word at every place attends to all others, on three levels, which then meet through gates.

Cross-Modal Self-Attention Network for Referring Image Segmentation, Ye et al., CVPR 2019.

There is no LSTM. Words and places are taken in pairs from the start: what stands for the word n at the place p is
[what is seen at p; the vector of n; the coordinates of p]. Where paper and released code differ, this is the code. It
rectifies queries, keys and values. Keys and values are the largest of eight neighbours each: two words, rows and
columns. It does not divide by the root of the width, and it adds 1 in the sigmoids of the gates.

The first 1×1 convolution over such a triple has two parts, and no word touches that of the photograph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.parts.lateral import COORDINATES, DEEPLAB_320, build_raw_encoder, start_xavier, with_coordinates
from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.gated_aggregation import MGATE


class CMSAConfig(ReferringConfig):
    """Every size of the network; the defaults are light."""

    model_type = "cmsa"

    attention_width: int = 64
    """Channels in which the deepest level attends, a multiple of 8. What the two others make of a word at a place has
    half and a quarter as many channels, and they attend in half of that."""

    def check(self) -> None:
        super().check()
        self.check_whole_numbers(("attention_width",))
        if self.attention_width % 8:
            raise RefsegError(f"attention_width is {self.attention_width}; give a multiple of 8")

    @classmethod
    def published(cls, **changes: Any) -> CMSAConfig:
        """The sizes of the released code, with its vocabulary for UNC, UNC+ and G-Ref."""
        sizes = {"vocabulary": 12112, "word_size": 1000, "attention_width": 512, "width": 500}
        return cls(**{**DEEPLAB_320, **sizes, **changes})


class CMSA(ReferringNetwork):
    """Cross-modal self-attention and gated fusion of the levels: one mask logit a cell."""

    config_class = CMSAConfig
    paper = "Cross-Modal Self-Attention Network for Referring Image Segmentation, CVPR 2019"
    config: CMSAConfig

    def __init__(self, config: CMSAConfig) -> None:
        super().__init__(config)
        word, width, inner = config.word_size, config.width, config.attention_width
        self.image_encoder = build_raw_encoder(config)
        third, fourth, fifth = self.image_encoder.backbone.channels
        self.text_encoder = WordVectors(config.vocabulary, word, freeze=config.freeze_words)
        self.deepest = nn.Conv2d(fifth, word, 1)
        self.third = MixedLevel(third, word, inner // 4, inner // 8, width)
        self.fourth = MixedLevel(fourth, word, inner // 2, inner // 4, width)
        self.fifth = PlainLevel(word, word, inner, width)
        self.gates = MGATE(width, learnt=True)
        self.score = nn.Conv2d(width, 1, 3, padding=1)
        start_xavier(self.deepest, self.third, self.fourth, self.fifth, self.gates, self.score)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → the photograph's part of three levels, and the deepest map itself."""
        third, fourth, fifth = self.image_encoder(images, grid)
        deepest = with_coordinates(F.normalize(self.deepest(fifth), dim=1))  # (I, word_size + 8, h, w)
        levels = (with_coordinates(F.normalize(level, dim=1)) for level in (third, fourth))
        seen = (level.see(x) for level, x in zip((self.third, self.fourth), levels, strict=True))
        return (*seen, self.fifth.see(deepest), deepest)

    def places(self, features: Features) -> Tensor:
        """What the deepest level would be without any word, (I, C, h, w)."""
        no_word = features[-1].new_zeros(1, self.config.word_size)
        return self.fifth.narrow(self.fifth.pairs(features[-1], no_word)).relu()

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """The features of each expression's photograph, each (B, …, h, w), and the sentences → mask logits."""
        third, fourth, fifth, deepest = features
        words, mask = self.text_encoder(tokens.ids, tokens.mask), tokens.mask  # (B, T, word_size)
        levels = [
            self.third(third, words, mask),
            self.fourth(fourth, words, mask),
            self.fifth(fifth, deepest, words, mask),
        ]  # each (B, C, h, w)
        joint = self.gates([(level, words) for level in levels], mask)
        return Prediction(self.score(joint))  # (B, 1, h, w)


class WordVectors(nn.Module):
    """Words that do not know their neighbours, each of length 1."""

    def __init__(self, vocabulary: int, width: int, *, freeze: bool) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.embedding.weight.requires_grad_(not freeze)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T) True at words → (B, T, width); rows past a sentence's end are zero."""
        return F.normalize(self.embedding(ids), dim=2) * mask.unsqueeze(-1)


class PlainLevel(nn.Module):
    """The deepest level: F' = F + relu(W_o A(F)) for each pair F = [v; w; P], and the mean over the words of F'.

    F is never built: the mean over the words needs only the mean word, and queries, keys and values are sums of what
    the photograph and what the word give.
    """

    def __init__(self, channels: int, word_size: int, inner: int, width: int) -> None:
        super().__init__()
        pair = channels + word_size + COORDINATES
        self.see = nn.Conv2d(channels + COORDINATES, 3 * inner, 1)
        self.hear = nn.Linear(word_size, 3 * inner, bias=False)
        self.out = nn.Linear(inner, pair)
        self.narrow = nn.Conv2d(pair, width, 1)

    def forward(self, seen: Tensor, level: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """level (B, channels+8, h, w), seen = see(level), words (B, T, word_size), mask (B, T) → (B, C, h, w)."""
        attended = attend(spread(seen, self.hear(words)), mask)
        found = mean_over_words(self.out(attended).relu(), mask)
        return self.narrow(self.pairs(level, average_word(words, mask)) + found).relu()

    def pairs(self, level: Tensor, word: Tensor) -> Tensor:
        """[v; P] (B, channels+8, h, w) and one word (B or 1, word_size) → [v; P; w], that word at each place."""
        return torch.cat([level, word[:, :, None, None].expand(len(level), -1, *level.shape[2:])], dim=1)


class MixedLevel(nn.Module):
    """A shallow level: F = relu(W [v; w; P]) has few channels, then as on the deepest."""

    def __init__(self, channels: int, word_size: int, pair: int, inner: int, width: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(channels + COORDINATES, pair, 1)
        self.hear = nn.Linear(word_size, pair, bias=False)
        self.project = nn.Linear(pair, 3 * inner)
        self.out = nn.Linear(inner, pair)
        self.narrow = nn.Conv2d(pair, width, 1)

    def forward(self, seen: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """seen (B, pair, h, w), words (B, T, word_size), mask (B, T) → (B, C, h, w)."""
        pairs = spread(seen, self.hear(words)).relu()  # (B, T, h, w, pair)
        attended = attend(self.project(pairs), mask)
        return self.narrow(mean_over_words(pairs + self.out(attended).relu(), mask)).relu()


def spread(seen: Tensor, said: Tensor) -> Tensor:
    """What is seen at each place (B, K, h, w) plus what each word says (B, T, K): (B, T, h, w, K)."""
    return seen.permute(0, 2, 3, 1).unsqueeze(1) + said[:, :, None, None]


def attend(projected: Tensor, mask: Tensor) -> Tensor:
    """Attention of each word at each place to the largest of eight neighbouring keys: two words, rows and columns.

    projected (B, T, h, w, 3·d) are queries, keys and values before they are rectified; mask (B, T) → (B, T, h, w, d).
    """
    query, rest = projected.relu().tensor_split([projected.shape[-1] // 3], dim=-1)
    h, w = projected.shape[2:4]
    # Nothing is less than 0, so that neither words past the end nor the border added here are ever the largest.
    bordered = F.pad(rest * mask[:, :, None, None, None], (0, 0, 0, w % 2, 0, h % 2, 0, 2))
    pooled = F.max_pool3d(bordered.movedim(-1, 1), 2)  # (B, 2·d, T/2+1, h/2, w/2)
    key, value = pooled.flatten(2).mT.unsqueeze(1).chunk(2, dim=-1)  # (B, 1, keys, d)
    places = pooled.shape[3] * pooled.shape[4]
    visible = F.pad(mask, (0, 1))[:, ::2].repeat_interleave(places, dim=1)[:, None, None]  # (B, 1, 1, keys)
    query = query.flatten(1, 3).unsqueeze(1)  # (B, 1, T·h·w, d)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":  # where it is three times slower than float32
        query, key, value = query.float(), key.float(), value.float()
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0)
    return attended.reshape(*projected.shape[:4], -1)


def mean_over_words(pairs: Tensor, mask: Tensor) -> Tensor:
    """pairs (B, T, h, w, K), mask (B, T) → the mean over a sentence's words, (B, K, h, w)."""
    real = mask.to(pairs.dtype)
    return torch.einsum("bthwk,bt->bkhw", pairs, real / real.sum(dim=1, keepdim=True))
