"""Fusion: pixels and words meet. SFM of the paper (section 3.2, equation 1) and the baseline it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.model.position import pixels_position, words_position

Fused = tuple[Tensor, Tensor]
"""One level after fusion: pixels (B, C, h, w) and words (B, T, C)."""


class SFM(nn.Module):
    """Synchronous Multi-Modal Fusion: one attention over the pixels of a level and the words together.

    Pixel–pixel, word–word and pixel–word interactions happen in the same step. The weights are shared
    by the levels. Position is added to query and key of each layer, never to the value.
    """

    def __init__(self, width: int, heads: int, layers: int, ffn: int, dropout: float, position: bool = True) -> None:
        super().__init__()
        self.position = position
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(AttentionLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, level: Tensor, words: Tensor, mask: Tensor) -> Fused:
        """level (B, C, h, w), words (B, T, C), mask (B, T) True at words; padded words change nothing."""
        (_, c, h, w), t = level.shape, words.shape[1]
        x = self.norm(torch.cat([level.flatten(2).transpose(1, 2), words], dim=1))  # (B, hw+T, C)
        position = x.new_zeros(h * w + t, c)
        if self.position:
            position = torch.cat([pixels_position(h, w, c, x), words_position(t, c, x)])
        visible = F.pad(mask, (h * w, 0), value=True)[:, None, None]  # (B, 1, 1, hw+T)
        for layer in self.layers:
            x = layer(x, position, visible)
        pixels, words = self.final_norm(x).split([h * w, t], dim=1)
        return pixels.transpose(1, 2).unflatten(2, (h, w)), words * mask.unsqueeze(-1)


class AttentionLayer(nn.Module):
    """Pre-norm multi-head attention and feed-forward, each with a residual."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key = nn.Linear(width, 2 * width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ffn),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(ffn, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """x (B, N, C), position (N, C), visible (B, 1, 1, N) True where a token may be attended to."""
        normed = self.norm(x)
        query, key = self.query_key(normed + position).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C/heads)
            for part in (query, key, self.value(normed))
        )
        if query.dtype == torch.bfloat16 and x.device.type == "cpu":  # where it is three times slower than float32
            query, key, value = query.float(), key.float(), value.float()
        met = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.dropout(self.out(met.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(x))


class ConcatFusion(nn.Module):
    """The paper's baseline: the sentence is concatenated to every pixel of a level; a 1×1 convolution mixes them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1))

    def forward(self, level: Tensor, words: Tensor, mask: Tensor) -> Fused:
        sentence = last_word(words, mask)[:, :, None, None].expand(-1, -1, *level.shape[2:])
        return self.mix(torch.cat([level, sentence], dim=1)), words


def last_word(words: Tensor, mask: Tensor) -> Tensor:
    """The LSTM's state after the sentence's last word, (B, C)."""
    last = mask.sum(dim=1).clamp(min=1) - 1
    return words[torch.arange(len(words), device=words.device), last]


def average_word(words: Tensor, mask: Tensor) -> Tensor:
    """Mean over the sentence's real words, (B, C); zero for a sentence without any."""
    return (words * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
