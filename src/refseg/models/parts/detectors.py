"""Two small detectors of COCO's 80 things as backbones: NanoDet-Plus-m-1.5x and PicoDet-S.

Their weights have batch norm folded in, and both learnt from photographs with ImageNet's statistics.
Boxes are left away: what serves here is where each class is seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from refseg.errors import RefsegError

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""What the channels of the scores mean, in order."""
MAPS = ("backbone", "neck", "scores")

Activation = Callable[[Tensor], Tensor]
leaky: Activation = partial(F.leaky_relu, negative_slope=0.1)


class DetectorConfig(PretrainedConfig):
    """What a detector hands out."""

    maps: list[str] | tuple[str, ...] = MAPS
    """Which of `backbone`, `neck` and `scores` each level holds; it holds them in this order."""

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.maps or not set(self.maps) <= set(MAPS):
            raise RefsegError(f"maps is {self.maps!r}; give one or more of: {', '.join(MAPS)}")
        super().__post_init__(**kwargs)


class NanoDetConfig(DetectorConfig):
    """NanoDet-Plus-m-1.5x."""

    model_type = "nanodet_plus"


class PicoDetConfig(DetectorConfig):
    """PicoDet-S."""

    model_type = "picodet"


class DetectorMaps(NamedTuple):
    """The maps of a detector, shallow to deep; those not asked for are empty."""

    backbone: Sequence[Tensor]
    """Strides 8, 16, 32."""
    neck: Sequence[Tensor]
    """Strides 8, 16, 32, 64, of one width."""
    scores: Sequence[Tensor]
    """Strides 8, 16, 32, 64: a probability for each of CLASSES."""


class DetectorLevels(nn.Module):
    """The maps of a detector at strides 8, 16 and 32, side by side; those at stride 64 join the last level."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        net = DETECTORS[config.model_type](config.maps)
        self.net: Any = net
        self.maps = tuple(config.maps)
        neck = net.neck_width if "neck" in self.maps else 0
        scores = len(CLASSES) if "scores" in self.maps else 0
        second, third, fourth = net.widths if "backbone" in self.maps else (0, 0, 0)
        self.channels: tuple[int, int, int] = (
            second + neck + scores,
            third + neck + scores,
            fourth + 2 * neck + scores,
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised pixels (I, 3, S, S) in RGB, S a multiple of 32 → levels (I, channels, S/8.., S/8..)."""
        maps: DetectorMaps = self.net(pixels)
        parts = [maps.backbone] if "backbone" in self.maps else []
        if "neck" in self.maps:
            *shallow, fifth, sixth = maps.neck
            parts.append([*shallow, torch.cat([fifth, _spread(sixth, fifth)], dim=1)])
        if "scores" in self.maps:
            *shallow, fifth, sixth = maps.scores
            parts.append([*shallow, torch.maximum(fifth, _spread(sixth, fifth))])
        second, third, fourth = (torch.cat(level, dim=1) for level in zip(*parts, strict=True))
        return second, third, fourth


def _spread(deep: Tensor, onto: Tensor) -> Tensor:
    """Each cell twice in both directions; on an odd side the last one once."""
    return F.interpolate(deep, size=onto.shape[-2:], mode="nearest")


class Layer(nn.Conv2d):
    """A convolution that keeps the size, or halves it with stride 2, and its activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Activation | None = None,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.activation is None else self.activation(y)


def depthwise(width: int, kernel: int, stride: int = 1, activation: Activation | None = None) -> Layer:
    return Layer(width, width, activation, kernel, stride, width)


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers one after the other, by the names that their weights have."""
    return nn.Sequential(OrderedDict(layers))


def separable(width: int, activation: Activation, stride: int = 1) -> nn.Sequential:
    return named(
        depthwise=depthwise(width, 5, stride, activation),
        pointwise=Layer(width, width, activation),
    )


def shuffle(x: Tensor) -> Tensor:
    """Takes channels from the first and the second half in turn."""
    return torch.stack(x.chunk(2, dim=1), dim=2).flatten(1, 2)


class Stages(nn.Module):
    """What both backbones share: from (I, 3, S, S) over stride 4 to strides 8, 16 and 32."""

    def __init__(self, first: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.conv1 = first
        self.stage2, self.stage3, self.stage4 = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        second = self.stage2(F.max_pool2d(self.conv1(x), 3, stride=2, padding=1))
        third = self.stage3(second)
        return [second, third, self.stage4(third)]


class NanoDet(nn.Module):
    """ShuffleNetV2 1.5x, Ghost-PAN and four heads; see `DetectorMaps`."""

    widths = (176, 352, 704)
    neck_width = 128

    def __init__(self, maps: Sequence[str] = MAPS) -> None:
        super().__init__()
        sizes = zip((24, *self.widths), self.widths, (4, 8, 4), strict=False)
        self.backbone = Stages(
            nn.Sequential(Layer(3, 24, leaky, 3, 2)),
            [
                nn.Sequential(ShuffleBlock(inputs, width, 2), *(ShuffleBlock(width, width) for _ in range(blocks - 1)))
                for inputs, width, blocks in sizes
            ],
        )
        self.fpn = GhostPAN(self.widths, self.neck_width) if {"neck", "scores"} & set(maps) else None
        self.head = NanoDetHead(self.neck_width) if "scores" in maps else None

    def forward(self, pixels: Tensor) -> DetectorMaps:
        backbone = self.backbone(pixels.flip(1))  # it learnt from BGR
        neck = self.fpn(*backbone) if self.fpn is not None else []
        return DetectorMaps(backbone, neck, self.head(neck) if self.head is not None else [])


class ShuffleBlock(nn.Module):
    """Of stride 1, half of the channels pass; of stride 2, both branches see them all."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        half = width // 2
        self.halves = stride == 1
        self.branch1 = (
            nn.Identity() if self.halves else named(**{"0": depthwise(inputs, 3, 2), "2": Layer(inputs, half, leaky)})
        )
        self.branch2 = named(
            **{
                "0": Layer(half if self.halves else inputs, half, leaky),
                "3": depthwise(half, 3, stride),
                "5": Layer(half, half, leaky),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.halves else (x, x)
        return shuffle(torch.cat([self.branch1(left), self.branch2(right)], dim=1))


class GhostPAN(nn.Module):
    """NanoDet's neck: down from the deepest map to the shallowest, and up again."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()

        def ghosts() -> nn.ModuleList:
            return nn.ModuleList(named(blocks=nn.Sequential(GhostBlock(2 * width, width))) for _ in range(2))

        self.reduce_layers = nn.ModuleList(named(conv=Layer(inputs, width, leaky)) for inputs in widths)
        self.top_down_blocks, self.bottom_up_blocks = ghosts(), ghosts()
        self.downsamples = nn.ModuleList(separable(width, leaky, 2) for _ in range(2))
        self.extra_lvl_in_conv = nn.Sequential(separable(width, leaky, 2))
        self.extra_lvl_out_conv = nn.Sequential(separable(width, leaky, 2))

    def forward(self, *maps: Tensor) -> list[Tensor]:
        c3, c4, c5 = (reduce(level) for reduce, level in zip(self.reduce_layers, maps, strict=True))
        up = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)
        t4 = self.top_down_blocks[0](torch.cat([up(c5), c4], dim=1))
        p3 = self.top_down_blocks[1](torch.cat([up(t4), c3], dim=1))
        p4 = self.bottom_up_blocks[0](torch.cat([self.downsamples[0](p3), t4], dim=1))
        p5 = self.bottom_up_blocks[1](torch.cat([self.downsamples[1](p4), c5], dim=1))
        return [p3, p4, p5, self.extra_lvl_in_conv(c5) + self.extra_lvl_out_conv(p5)]


class GhostBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.ghost1, self.ghost2 = Ghost(inputs, width, leaky), Ghost(width, width, None)
        self.shortcut = named(**{"0": depthwise(inputs, 5), "2": Layer(inputs, width)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ghost2(self.ghost1(x))
        return y + self.shortcut(x)


class Ghost(nn.Module):
    """Half of the channels mix all inputs; the other half are those again, each filtered by itself."""

    def __init__(self, inputs: int, width: int, activation: Activation | None) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(Layer(inputs, width // 2, activation))
        self.cheap_operation = nn.Sequential(depthwise(width // 2, 3, activation=activation))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.primary_conv(x)
        return torch.cat([mixed, self.cheap_operation(mixed)], dim=1)


class NanoDetHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_convs = nn.ModuleList(
            nn.Sequential(separable(width, leaky), separable(width, leaky)) for _ in range(4)
        )
        self.gfl_cls = nn.ModuleList(Layer(width, len(CLASSES), torch.sigmoid) for _ in range(4))

    def forward(self, neck: Sequence[Tensor]) -> list[Tensor]:
        return [score(convs(x)) for score, convs, x in zip(self.gfl_cls, self.cls_convs, neck, strict=True)]


class PicoDet(nn.Module):
    """ESNet 0.75x, CSP-PAN and four heads; see `DetectorMaps`."""

    widths = (96, 192, 384)
    neck_width = 96
    MIXED = ((44, 24, 24), (48, 60, 48, 60, 48, 48, 48), (96, 96, 96))
    """Width inside each block, per stage."""

    def __init__(self, maps: Sequence[str] = MAPS) -> None:
        super().__init__()
        sizes = zip((24, *self.widths), self.widths, self.MIXED, strict=False)
        self.backbone = Stages(
            Layer(3, 24, F.hardswish, 3, 2),
            [
                nn.Sequential(HalvingBlock(inputs, width, first), *(SplitBlock(width, mixed) for mixed in others))
                for inputs, width, (first, *others) in sizes
            ],
        )
        self.neck = CSPPAN(self.widths, self.neck_width) if {"neck", "scores"} & set(maps) else None
        self.head = PicoDetHead(self.neck_width) if "scores" in maps else None

    def forward(self, pixels: Tensor) -> DetectorMaps:
        backbone = self.backbone(pixels)
        neck = self.neck(*backbone) if self.neck is not None else []
        return DetectorMaps(backbone, neck, self.head(neck) if self.head is not None else [])


class Excitation(nn.Module):
    """Scales each channel by what the means of all say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = Layer(width, width // 4, F.relu)
        self.expand = Layer(width // 4, width, F.hardsigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean(dim=(2, 3), keepdim=True)))


class HalvingBlock(nn.Module):
    """Stride 2."""

    def __init__(self, inputs: int, width: int, mixed: int) -> None:
        super().__init__()
        half = width // 2
        self.left = named(depthwise=depthwise(inputs, 3, 2), pointwise=Layer(inputs, half, F.hardswish))
        self.right = named(
            conv_in=Layer(inputs, mixed, F.hardswish),
            depthwise=depthwise(mixed, 3, 2),
            se=Excitation(mixed),
            conv_out=Layer(mixed, half, F.hardswish),
        )
        self.mix = named(
            depthwise=depthwise(width, 3, activation=F.hardswish),
            pointwise=Layer(width, width, F.hardswish),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(torch.cat([self.left(x), self.right(x)], dim=1))
        return y


class SplitBlock(nn.Module):
    """Half of the channels pass."""

    def __init__(self, width: int, mixed: int) -> None:
        super().__init__()
        self.conv_in = Layer(width // 2, mixed, F.hardswish)
        self.depthwise = depthwise(mixed, 3)
        self.se = Excitation(2 * mixed)
        self.conv_out = Layer(2 * mixed, width // 2, F.hardswish)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = self.conv_in(right)
        z = self.se(torch.cat([y, self.depthwise(y)], dim=1))
        return shuffle(torch.cat([left, self.conv_out(z)], dim=1))


class CSPPAN(nn.Module):
    """PicoDet's neck: down from the deepest map to the shallowest, and up again."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.reduce_8, self.reduce_16, self.reduce_32 = (Layer(inputs, width, F.hardswish) for inputs in widths)
        self.top_down_16, self.top_down_8 = CSPBlock(2 * width, width), CSPBlock(2 * width, width)
        self.bottom_up_16, self.bottom_up_32 = CSPBlock(2 * width, width), CSPBlock(2 * width, width)
        self.down_8_to_16, self.down_16_to_32 = separable(width, F.hardswish, 2), separable(width, F.hardswish, 2)
        self.extra_from_c5, self.extra_from_p5 = separable(width, F.hardswish, 2), separable(width, F.hardswish, 2)

    def forward(self, second: Tensor, third: Tensor, fourth: Tensor) -> list[Tensor]:
        c3, c4, c5 = self.reduce_8(second), self.reduce_16(third), self.reduce_32(fourth)
        up = partial(F.interpolate, scale_factor=2, mode="nearest")
        t4 = self.top_down_16(torch.cat([up(c5), c4], dim=1))
        p3 = self.top_down_8(torch.cat([up(t4), c3], dim=1))
        p4 = self.bottom_up_16(torch.cat([self.down_8_to_16(p3), t4], dim=1))
        p5 = self.bottom_up_32(torch.cat([self.down_16_to_32(p4), c5], dim=1))
        return [p3, p4, p5, self.extra_from_c5(c5) + self.extra_from_p5(p5)]


class CSPBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.short, self.main = Layer(inputs, half, F.hardswish), Layer(inputs, half, F.hardswish)
        self.block = named(conv=Layer(half, half, F.hardswish), **dict(separable(half, F.hardswish).named_children()))
        self.final = Layer(width, width, F.hardswish)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.final(torch.cat([self.block(self.main(x)), self.short(x)], dim=1))
        return y


class PicoDetHead(nn.ModuleDict):
    def __init__(self, width: int) -> None:
        super().__init__()
        for stride in (8, 16, 32, 64):
            self[f"stride{stride}"] = named(
                **{"0": separable(width, F.hardswish), "1": separable(width, F.hardswish)},
                out=Layer(width, len(CLASSES), torch.sigmoid),
            )

    def forward(self, neck: Sequence[Tensor]) -> list[Tensor]:
        return [head(x) for head, x in zip(self.values(), neck, strict=True)]


DETECTORS: dict[str, type[NanoDet] | type[PicoDet]] = {
    NanoDetConfig.model_type: NanoDet,
    PicoDetConfig.model_type: PicoDet,
}
"""By `model_type`."""

for _config in (NanoDetConfig, PicoDetConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
