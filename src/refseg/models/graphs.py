"""A network as graphs, as exporters want them: modules of plain tensors about one photograph and one expression.

Every weight belongs to the attribute `network` of a graph, under the name that it has in a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from refseg.models.interface import Graphs, ReferringNetwork, TokenBatch


class Graph(nn.Module):
    """A part of the network's work."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network


class EncoderGraph(Graph):
    """As `ReferringNetwork.encode`."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.encode(images))


class DecoderGraph(Graph):
    """As `ReferringNetwork.answer`."""

    def forward(self, ids: Tensor, *features: Tensor) -> Tensor:
        return self.network.answer(features, unpadded(ids)).mask_logits


class ParsedDecoderGraph(Graph):
    """As `ReferringNetwork.answer` of a network that reads trees."""

    def forward(self, ids: Tensor, heads: Tensor, *features: Tensor) -> Tensor:
        return self.network.answer(features, unpadded(ids)._replace(heads=heads)).mask_logits


def unpadded(ids: Tensor) -> TokenBatch:
    """One sentence (1, T) of words alone."""
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def graphs_of(network: ReferringNetwork) -> Graphs:
    """The network's own, or else those that every network has."""
    decoder = ParsedDecoderGraph if network.config.parses else DecoderGraph
    return network.graphs() or Graphs(EncoderGraph(network), decoder(network))
