"""A backbone's maps on the common grid, where what is seen at each place is a vector of length 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.interface import ReferringConfig
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.convlstm import resized
from refseg.models.parts.image_encoder import ImageEncoder
from refseg.models.parts.lateral import start_xavier


class UnitLevel(nn.Module):
    """A map of the backbone, resized where its side is another: 1×1 convolution, then scaled to length 1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1)
        start_xavier(self)

    def forward(self, level: Tensor, grid: int) -> Tensor:
        """level (I, channels, any, any) → (I, width, grid, grid)."""
        return F.normalize(self.conv(resized(level, level.new_empty(0, 0, grid, grid))), dim=1)


class HalvedUnitLevel(UnitLevel):
    """A map of twice the grid: 3×3 convolution of stride 2, then scaled to length 1."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)
        self.conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        start_xavier(self)

    def forward(self, level: Tensor, grid: int) -> Tensor:
        return F.normalize(self.conv(resized(level, level.new_empty(0, 0, 2 * grid, 2 * grid))), dim=1)


def build_unit_encoder(config: ReferringConfig, *, halved: bool = False) -> ImageEncoder:
    """Three levels, shallow to deep, each (I, C, grid, grid); `halved` puts a fourth in front, of twice the grid."""
    backbone = build_backbone(config.backbone_config, config.output_stride, 4 if halved else 3)
    levels: list[nn.Module] = [UnitLevel(channels, config.width) for channels in backbone.channels]
    if halved:
        levels[0] = HalvedUnitLevel(backbone.channels[0], config.width)
    return ImageEncoder(
        backbone, levels, config.grid, config.pixel_mean, config.pixel_std, freeze=config.freeze_backbone
    )
