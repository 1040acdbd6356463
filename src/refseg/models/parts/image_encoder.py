"""Image encoder: a photograph becomes levels on one common grid (SHNet's paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, MobileNetV2Model, PretrainedConfig

from refseg.errors import RefsegError

Maps = tuple[Tensor, Tensor, Tensor]
"""A backbone's last three maps of I photographs, shallow to deep, each with its own channels and side."""


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of the photographs that most backbones learnt from, RGB in 0..1."""


class ImageEncoder(nn.Module):
    """A backbone, and what brings each of its maps onto the common grid.

    Batch norm inside the backbone keeps its statistics, frozen or not: the batches are small.
    """

    mean: Tensor
    std: Tensor
    keep_statistics: bool = True
    """False lets the backbone's batch norm learn statistics: one that starts from random weights has none to keep."""

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[nn.Module],
        grid: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        *,
        freeze: bool,
    ) -> None:
        """`levels`: one module per map of the backbone, called with the map and the cells a side; see `PooledLevel`."""
        super().__init__()
        self.backbone: Any = backbone.requires_grad_(not freeze)
        self.freeze = freeze
        self.grid = grid
        self.project = nn.ModuleList(levels)
        self.register_buffer("mean", torch.tensor(list(pixel_mean)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(list(pixel_std)).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        if self.keep_statistics:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor, grid: int | None = None) -> tuple[Tensor, ...]:
        """images (I, 3, S, S) in 0..1 → one level per map of the backbone, each (I, C, grid, grid)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            maps = self.backbone((images - self.mean) / self.std)
        return tuple(project(level, grid or self.grid) for project, level in zip(self.project, maps, strict=True))


class PooledLevel(nn.ModuleList):
    """A map of the backbone on the common grid: adaptive max pool to twice the grid, 3×3 convolution of stride 2."""

    def __init__(self, channels: int, width: int) -> None:
        conv = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)
        super().__init__([conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.1)])

    def forward(self, level: Tensor, grid: int) -> Tensor:
        """level (I, channels, any, any) → (I, width, grid, grid)."""
        conv, norm, activation = self
        return activation(norm(conv(F.adaptive_max_pool2d(level, 2 * grid))))


class BackboneLevels(nn.Module):
    """The last three stages of any `transformers` backbone, shallow to deep."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        if not hasattr(config, "stage_names"):
            raise RefsegError(f"{config.model_type} is no backbone; try resnet, swin or convnext")
        if len(config.stage_names) < 4:
            raise RefsegError(
                f"{config.model_type} yields {len(config.stage_names) - 1} stages; three levels are needed"
            )
        config.out_features = config.stage_names[-3:]
        self.net = AutoBackbone.from_config(config)
        self.channels: tuple[int, int, int] = tuple(self.net.channels[-3:])

    def forward(self, pixels: Tensor) -> Maps:
        second, third, fourth = self.net(pixels).feature_maps
        if second.shape[1] == self.channels[0]:
            return second, third, fourth
        # Swin hands out channels last in some releases of transformers.
        return second.permute(0, 3, 1, 2), third.permute(0, 3, 1, 2), fourth.permute(0, 3, 1, 2)


class MobileNetV2Levels(nn.Module):
    """MobileNetV2 has no backbone class: its levels are the last block at strides 8 and 16, and the last of all."""

    LAST_BLOCKS = (4, 11, 15)

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        # The 1×1 convolution to 1,280 channels serves classification alone.
        self.net = MobileNetV2Model(config, add_pooling_layer=False)
        self.net.conv_1x1 = nn.Identity()
        second, third, fourth = (self.net.layer[i].reduce_1x1.convolution.out_channels for i in self.LAST_BLOCKS)
        self.channels: tuple[int, int, int] = (second, third, fourth)

    def forward(self, pixels: Tensor) -> Maps:
        hidden = self.net(pixels, output_hidden_states=True).hidden_states
        second, third, fourth = (hidden[i] for i in self.LAST_BLOCKS)
        return second, third, fourth


def build_backbone(config: PretrainedConfig, output_stride: int | None) -> BackboneLevels | MobileNetV2Levels:
    """A backbone that yields three levels and declares their `channels`.

    `output_stride` 8 or 16 dilates a ResNet; other backbones keep the stride of their own config.
    """
    if config.model_type == "mobilenet_v2":
        return MobileNetV2Levels(config)
    backbone = BackboneLevels(config)
    if output_stride is not None and output_stride != 32:
        if config.model_type != "resnet":
            raise RefsegError(f"output_stride dilates ResNets; leave it out for {config.model_type}")
        dilate(backbone.net.encoder.stages, output_stride)
    return backbone


def dilate(stages: nn.ModuleList, output_stride: int) -> None:
    """Trades the strides of a ResNet's last stages for dilation, in place (DeepLab, Chen et al. 2018).

    A stage that follows one lost stride is dilated by 2, after two by 4; the last stage's blocks
    further by the multi-grid 1-2-4, as in the DeepLabv3+ encoder of the paper.
    """
    if output_stride not in (8, 16):
        raise RefsegError(f"output_stride {output_stride} is not one of 8, 16, 32")
    rate = 1
    for stage in list(stages)[-1:] if output_stride == 16 else list(stages)[-2:]:
        rate *= 2
        layers: Any = stage.layers
        for index, block in enumerate(layers):
            multi_grid = (1, 2, 4)[min(index, 2)] if stage is stages[-1] else 1
            for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d)):
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (rate * multi_grid, rate * multi_grid)
