"""A backbone's raw maps on the common grid, and where each cell of it lies, for the networks that bring in their words
by 1×1 convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from refseg.models.parts.convlstm import resized
from refseg.models.parts.image_encoder import ImageEncoder

COORDINATES = 8
"""Channels of `coordinates`."""
DEEPLAB_320: dict[str, Any] = {
    "backbone_config": {"model_type": "resnet", "depths": [3, 4, 23, 3], "layer_type": "bottleneck"},
    "output_stride": 8,
    "pixel_mean": IMAGENET_MEAN,
    "pixel_std": IMAGENET_STD,
    "image_size": 320,
    "letterbox": True,
    "grid": 40,
    "max_words": 20,
    "dropout": 0.0,
}
"""The settings that RRN, CMSA, STEP, BRINet, LSCM, CMPC and BUSNet share: a frozen ResNet-101 that sees letterboxed
photographs and is dilated to maps of 40×40. Theirs is that of DeepLab-v2, which dilates its last stage evenly; ours by
1-2-4, as DeepLabv3+ does."""


def coordinates(like: Tensor) -> Tensor:
    """Where each cell of a map (B, C, h, w) lies, (B, 8, h, w).

    Its left, top, right and bottom edge and its middle's column and row, each in −1..1 over the map; then 1/w and 1/h.
    """
    count, _, h, w = like.shape
    rows, columns = (torch.arange(side, device=like.device, dtype=like.dtype) / side * 2 - 1 for side in (h, w))
    left, top = columns.expand(h, w), rows[:, None].expand(h, w)
    cell_width, cell_height = torch.full_like(left, 1 / w), torch.full_like(left, 1 / h)
    planes = [
        left,
        top,
        left + 2 * cell_width,
        top + 2 * cell_height,
        left + cell_width,
        top + cell_height,
        cell_width,
        cell_height,
    ]
    return torch.stack(planes).expand(count, -1, -1, -1)


def with_coordinates(level: Tensor) -> Tensor:
    """level (B, C, h, w) → (B, C+8, h, w), the place of each cell behind what is seen there."""
    return torch.cat([level, coordinates(level)], dim=1)


class OnGrid(nn.Module):
    """A map of the backbone as it is, resized where the backbone's stride gives it another side."""

    def forward(self, level: Tensor, grid: int) -> Tensor:
        """level (I, channels, any, any) → (I, channels, grid, grid)."""
        return resized(level, level.new_empty(0, 0, grid, grid))


def build_raw_encoder(config: PretrainedConfig) -> ImageEncoder:
    """The backbone's three maps on the grid of a `ReferringConfig`; their channels are `backbone.channels`."""
    backbone = build_backbone(config.backbone_config, config.output_stride)
    levels = [OnGrid() for _ in backbone.channels]
    return ImageEncoder(
        backbone, levels, config.grid, config.pixel_mean, config.pixel_std, freeze=config.freeze_backbone
    )


def start_xavier(*parts: nn.Module) -> None:
    """Fresh weights of all convolutions and linear layers in these parts by Glorot and Bengio, with biases of zero."""
    for layer in (layer for part in parts for layer in part.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
