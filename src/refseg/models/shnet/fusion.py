"""Fusion: pixels and words meet. SFM of the paper (section 3.2, equation 1) and the baseline it is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.parts.position import pixels_position, words_position
from refseg.models.parts.text_encoder import last_word

Fused = tuple[Tensor, Tensor]
"""One level after fusion: pixels (B, C, h, w) and words (B, T, C)."""


class SFM(nn.Module):
    """Synchronous Multi-Modal Fusion: one attention over the pixels of a level and the words together.

    Pixel–pixel, word–word and pixel–word interactions happen in the same step. The weights are shared
    by the levels. Position is added to query and key of each layer, never to the value.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        ffn: int,
        dropout: float,
        position: bool = True,
        *,
        counted: bool = False,
        norm: bool = True,
        attention_dropout: float = 0.0,
    ) -> None:
        """`counted`: see `pixels_position`; `norm`: whether pixels and words are layer-normalised first.

        `attention_dropout`: that of the shares of attention; `dropout`: that of what is added to pixels and words.
        """
        super().__init__()
        self.position, self.counted = position, counted
        self.norm: nn.Module = nn.LayerNorm(width) if norm else nn.Identity()
        self.layers = nn.ModuleList(
            AttentionLayer(width, heads, ffn, dropout, attention_dropout) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(width)

    def forward(self, level: Tensor, words: Tensor, mask: Tensor) -> Fused:
        """level (B, C, h, w), words (B, T, C), mask (B, T) True at words; padded words change nothing."""
        (h, w), t = level.shape[2:], words.shape[1]
        x = self.norm(torch.cat([level.flatten(2).transpose(1, 2), words], dim=1))  # (B, hw+T, C)
        position = torch.cat([self.place_pixels(h, w, x), self.place_words(t, x)])  # (hw+T, C)
        visible = F.pad(mask, (h * w, 0), value=True)[:, None, None]  # (B, 1, 1, hw+T)
        for layer in self.layers:
            x = layer(x, position, visible)
        pixels, words = self.final_norm(x).split([h * w, t], dim=1)
        return pixels.transpose(1, 2).unflatten(2, (h, w)), words * mask.unsqueeze(-1)

    def place_pixels(self, h: int, w: int, like: Tensor) -> Tensor:
        """Where the pixels of a level are, row by row, (hw, C); zero without `position`. `like`: (…, C)."""
        c = like.shape[-1]
        return pixels_position(h, w, c, like, self.counted) if self.position else like.new_zeros(h * w, c)

    def place_words(self, t: int, like: Tensor) -> Tensor:
        """Where the words are, (T, C); zero without `position`. `like`: (…, C)."""
        c = like.shape[-1]
        return words_position(t, c, like, self.counted) if self.position else like.new_zeros(t, c)


class AttentionLayer(nn.Module):
    """Pre-norm multi-head attention and feed-forward, each with a residual."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, attention_dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
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

    def forward(self, x: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """x (B, N, C), position (N, C), visible (B, 1, 1, N) True where a token may be attended to (None: all)."""
        query, key, value = self.project(x, position)  # (B, heads, N, C/heads)
        if query.dtype == torch.bfloat16 and x.device.type == "cpu":  # where it is three times slower than float32
            query, key, value = query.float(), key.float(), value.float()
        dropped = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropped)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(x))

    def project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (…, N, C), position (N, C) → query, key and value, each (…, heads, N, C/heads)."""
        normed = self.norm(x)
        query, key = self.query_key(normed + position).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (query, key, self.value(normed))
        )
        return query, key, value


def attention(sfm: SFM, level: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """What attends to what, (layers, B, hw+T, hw+T): shares of a query's attention, so that each row sums to 1.

    Queries by rows, keys by columns; pixels row by row, then words. The softmax of equation 1, mean over heads; padded
    words get 0. These are the weights by which pixels and words reach each other, and no proof of why a mask is as it
    is. One call at a time on the same network.
    """
    hw = level.shape[2] * level.shape[3]
    layers = [layer for layer in sfm.layers if isinstance(layer, AttentionLayer)]
    seen: list[Tensor] = []
    watched = [layer.query_key.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in layers]
    try:
        sfm(level, words, mask)
    finally:
        for hook in watched:
            hook.remove()
    hidden = ~F.pad(mask, (hw, 0), value=True)[:, None, None]  # (B, 1, 1, hw+T)
    shares = []
    for layer, query_key in zip(layers, seen, strict=True):
        query, key = query_key.view(*query_key.shape[:2], 2, layer.heads, -1).permute(2, 0, 3, 1, 4)
        likeness = (query @ key.mT / query.shape[-1] ** 0.5).float()  # (B, heads, hw+T, hw+T)
        shares.append(likeness.masked_fill(hidden, -torch.inf).softmax(dim=-1).mean(dim=1))
    return torch.stack(shares)


class TileFusion(nn.Module):
    """The paper's baseline: the sentence is tiled and concatenated to every pixel of a level, 2·C channels in all."""

    def forward(self, level: Tensor, words: Tensor, mask: Tensor) -> Fused:
        sentence = last_word(words, mask)[:, :, None, None].expand(-1, -1, *level.shape[2:])
        return torch.cat([level, sentence], dim=1), words


class ConcatFusion(TileFusion):
    """The baseline at the width of the other fusions: a 1×1 convolution mixes pixels and sentence to C channels."""

    def __init__(self, width: int, slope: float = 0.1) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(slope))

    def forward(self, level: Tensor, words: Tensor, mask: Tensor) -> Fused:
        pixels, words = super().forward(level, words, mask)
        return self.mix(pixels), words
