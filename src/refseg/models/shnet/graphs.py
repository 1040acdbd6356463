"""SHNet as graphs that answer: what no word touches is computed with the photograph, SFM's first layer included.

Each pixel's attention in that layer is the mean of two parts, one over the pixels and one over the words, weighed by
their sums of exponentials; only the second waits for the words. The three levels go through SFM side by side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from refseg.models.graphs import Graph, unpadded
from refseg.models.interface import Graphs
from refseg.models.shnet.fusion import AttentionLayer


class Ahead(NamedTuple):
    """What the words do not touch, level by level: N = h·w pixels in `heads` of C/heads channels each."""

    pixels: Tensor
    """Normed, (3, N, C)."""
    query: Tensor
    """Of the first layer, (3, heads, N, C/heads), divided by the root of C/heads."""
    key: Tensor
    value: Tensor
    met: Tensor
    """What the pixels' attention among themselves yields, (3, heads, N, C/heads)."""
    weight: Tensor
    """Logarithm of the sum of that attention's exponentials, (3, heads, N, 1)."""


def sfm_graphs(network: Any) -> Graphs:
    """Those of an SHNet that fuses by SFM."""
    return Graphs(AheadGraph(network), AnswerGraph(network), AttentionGraph(network))


class AheadGraph(Graph):
    def forward(self, images: Tensor) -> Ahead:
        levels = torch.cat(self.network.encode(images))  # (3, C, h, w)
        pixels = self.network.fusion.norm(levels.flatten(2).transpose(1, 2))
        position = self.network.fusion.place_pixels(levels.shape[2], levels.shape[3], pixels)
        query, key, value = project(self.network.fusion.layers[0], pixels, position)
        met, weight = zip(*(meet_pixels(*level) for level in zip(query, key, value, strict=True)), strict=True)
        return Ahead(pixels, query, key, value, torch.stack(met), torch.stack(weight))


class AnswerGraph(Graph):
    def forward(self, ids: Tensor, *ahead: Tensor) -> Tensor:
        x, _ = attend(self.network, ids, Ahead(*ahead))
        side, t = self.network.config.grid, ids.shape[1]
        pixels, words = self.network.fusion.final_norm(x).split([side * side, t], dim=1)
        maps = pixels.transpose(1, 2).unflatten(2, (side, side))
        fused = [(maps[level : level + 1], words[level : level + 1]) for level in range(3)]
        joint = self.network.aggregation(fused, unpadded(ids).mask)
        return self.network.decoder(joint)


class AttentionGraph(Graph):
    def forward(self, ids: Tensor, *ahead: Tensor) -> Tensor:
        _, shares = attend(self.network, ids, Ahead(*ahead))
        return torch.stack([torch.stack(layer).mean(dim=1) for layer in shares], dim=1)  # mean over heads


def attend(network: Any, ids: Tensor, ahead: Ahead) -> tuple[Tensor, list[list[Tensor]]]:
    """Pixels and words (3, N+T, C) after SFM's layers, and of each layer the shares (heads, N+T, N+T) of each level.

    What a graph does not use of them, the exporter leaves away. One level's shares at a time are in memory.
    """
    fusion, side = network.fusion, network.config.grid
    first, *later = fusion.layers
    words = fusion.norm(network.text_encoder(*unpadded(ids)[:2]))[0]  # (T, C)
    of_words = fusion.place_words(words.shape[0], words)
    own_query, own_key, own_value = project(first, words, of_words)
    query, key, value = (
        torch.cat([a, b.expand(3, *b.shape)], dim=2)
        for a, b in ((ahead.query, own_query), (ahead.key, own_key), (ahead.value, own_value))
    )
    shares = [level_by_level(query, key)]
    met = torch.cat([meet_words(ahead, own_key, own_value), (own_query @ key.mT).softmax(dim=-1) @ value], dim=2)
    x = finish(first, torch.cat([ahead.pixels, words.expand(3, *words.shape)], dim=1), met)
    position = torch.cat([fusion.place_pixels(side, side, x), of_words])
    for layer in later:
        query, key, value = project(layer, x, position)
        shares.append(level_by_level(query, key))
        x = finish(layer, x, torch.stack([share @ level for share, level in zip(shares[-1], value, strict=True)]))
    return x, shares


def level_by_level(query: Tensor, key: Tensor) -> list[Tensor]:
    """query and key (3, heads, N+T, C/heads) → of each level the shares (heads, N+T, N+T)."""
    return [(queries @ keys.mT).softmax(dim=-1) for queries, keys in zip(query, key, strict=True)]


def meet_pixels(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """One level's attention among its pixels, (heads, N, C/heads), and the logarithm of its sum, (heads, N, 1)."""
    scores = query @ key.mT
    highest = scores.amax(dim=-1, keepdim=True)
    shares = (scores - highest).exp()
    total = shares.sum(dim=-1, keepdim=True)
    return shares @ value / total, highest + total.log()


def meet_words(ahead: Ahead, key: Tensor, value: Tensor) -> Tensor:
    """The first layer's attention of the pixels, given what it is among themselves: (3, heads, N, C/heads)."""
    scores = ahead.query @ key.mT  # (3, heads, N, T)
    highest = torch.maximum(ahead.weight, scores.amax(dim=-1, keepdim=True))
    among_pixels, to_words = (ahead.weight - highest).exp(), (scores - highest).exp()
    total = among_pixels + to_words.sum(dim=-1, keepdim=True)
    return (among_pixels * ahead.met + to_words @ value) / total


def project(layer: AttentionLayer, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `AttentionLayer.project`, the query divided by the root of C/heads."""
    query, key, value = layer.project(x, position)
    return query * query.shape[-1] ** -0.5, key, value


def finish(layer: AttentionLayer, x: Tensor, met: Tensor) -> Tensor:
    """What a layer makes of its attention `met` (3, heads, N+T, C/heads)."""
    x = x + layer.out(met.transpose(1, 2).flatten(2))
    return x + layer.ffn(x)
