"""A backbone taken apart, for a network that changes a map before the next stage reads it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from refseg.errors import RefsegError
from refseg.models.parts.backbone import MobileNetV2Levels

STAGED = ("resnet", "mobilenet_v2")
"""Backbones that can be taken apart."""


def stages_of(backbone: Any) -> list[nn.Sequential]:
    """The stages of what `build_backbone` built, shallow to deep: each makes its map of the one before.

    The first makes a map of half the side of normalised pixels. The weights are those of the backbone itself. Raises
    RefsegError for a backbone that cannot be taken apart.
    """
    net = backbone.net
    if isinstance(backbone, MobileNetV2Levels):
        bounds = [0, *(last + 1 for last in MobileNetV2Levels.LAST_BLOCKS)]
        blocks = [net.layer[start:end] for start, end in pairwise(bounds)]
        return [nn.Sequential(net.conv_stem), *(nn.Sequential(*block) for block in blocks)]
    if net.config.model_type != "resnet":
        raise RefsegError(f"{net.config.model_type} cannot be taken apart; use one of: {', '.join(STAGED)}")
    first, *others = net.encoder.stages
    stem = nn.Sequential(net.embedder.embedder)
    return [stem, nn.Sequential(net.embedder.pooler, first), *(nn.Sequential(stage) for stage in others)]


def channels_of(backbone: Any) -> list[int]:
    """The channels of the map that each of `stages_of` makes."""
    net = backbone.net
    if isinstance(backbone, MobileNetV2Levels):
        reduced = [net.conv_stem.reduce_1x1, *(net.layer[last].reduce_1x1 for last in MobileNetV2Levels.LAST_BLOCKS)]
        return [block.convolution.out_channels for block in reduced]
    return [net.config.embedding_size, *net.config.hidden_sizes]
