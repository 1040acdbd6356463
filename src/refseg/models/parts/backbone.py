"""Backbones: any of `transformers`, and the detectors, as three or four maps of a photograph, shallow to deep."""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, MobileNetV2Model, PretrainedConfig

from refseg.errors import RefsegError
from refseg.models.parts.detectors import DETECTORS, DetectorLevels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of the photographs that most backbones learnt from, RGB in 0..1."""
Maps = tuple[Tensor, ...]
"""A backbone's last maps of I photographs, shallow to deep, each with its own channels and side."""


def read_backbone_config(backbone: Any) -> PretrainedConfig:
    """The backbone's config from its dictionary. Raises RefsegError for a type or a setting that does not exist."""
    backbone = backbone or {"model_type": "mobilenet_v2", "output_stride": 16}
    if not isinstance(backbone, dict):
        return backbone
    backbone = dict(backbone)
    name = backbone.pop("model_type", None)
    if name is None:
        raise RefsegError("backbone_config lacks model_type; name one, such as resnet or mobilenet_v2")
    try:
        return AutoConfig.for_model(name, **backbone)
    except ValueError as fault:
        raise RefsegError(f"transformers knows no backbone {name!r}; try resnet or swin") from fault
    except StrictDataclassError as fault:
        raise RefsegError(f"backbone_config does not fit {name}: {' '.join(str(fault).split())}") from fault


class BackboneLevels(nn.Module):
    """The last stages of any `transformers` backbone, shallow to deep."""

    def __init__(self, config: PretrainedConfig, levels: int = 3) -> None:
        super().__init__()
        if not hasattr(config, "stage_names"):
            raise RefsegError(f"{config.model_type} is no backbone; try resnet, swin or convnext")
        if len(config.stage_names) <= levels:
            needed = {3: "three", 4: "four"}[levels]
            raise RefsegError(
                f"{config.model_type} yields {len(config.stage_names) - 1} stages; {needed} levels are needed"
            )
        config.out_features = config.stage_names[-levels:]
        self.net = AutoBackbone.from_config(config)
        self.channels: tuple[int, ...] = tuple(self.net.channels[-levels:])

    def forward(self, pixels: Tensor) -> Maps:
        maps: Maps = tuple(self.net(pixels).feature_maps)
        if maps[0].shape[1] == self.channels[0]:
            return maps
        # Swin hands out channels last in some releases of transformers.
        return tuple(level.permute(0, 3, 1, 2) for level in maps)


class MobileNetV2Levels(nn.Module):
    """MobileNetV2 has no backbone class: its levels are the last block at strides 4, 8 and 16, and the last of all."""

    LAST_BLOCKS = (1, 4, 11, 15)

    def __init__(self, config: PretrainedConfig, levels: int = 3) -> None:
        super().__init__()
        # The 1×1 convolution to 1,280 channels serves classification alone.
        self.net = MobileNetV2Model(config, add_pooling_layer=False)
        self.net.conv_1x1 = nn.Identity()
        self.blocks = self.LAST_BLOCKS[-levels:]
        self.channels = tuple(self.net.layer[i].reduce_1x1.convolution.out_channels for i in self.blocks)

    def forward(self, pixels: Tensor) -> Maps:
        hidden = self.net(pixels, output_hidden_states=True).hidden_states
        return tuple(hidden[i] for i in self.blocks)


def build_backbone(
    config: PretrainedConfig, output_stride: int | None, levels: int = 3
) -> BackboneLevels | MobileNetV2Levels | DetectorLevels:
    """A backbone that yields three levels, or four, and declares their `channels`.

    `output_stride` 8 or 16 dilates a ResNet; other backbones keep the stride of their own config.
    """
    if config.model_type == "mobilenet_v2":
        return MobileNetV2Levels(config, levels)
    if config.model_type in DETECTORS and levels > 3:
        raise RefsegError(f"{config.model_type} yields three levels and four are needed; try resnet or mobilenet_v2")
    backbone = DetectorLevels(config) if config.model_type in DETECTORS else BackboneLevels(config, levels)
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
