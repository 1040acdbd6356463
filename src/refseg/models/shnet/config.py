"""What an SHNet is made of: every size, and which of the alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from refseg.errors import RefsegError
from refseg.models.shnet.aggregation import HCAM, Conv3DAggregation, ConvLSTMAggregation, SumAggregation
from refseg.models.shnet.gated_aggregation import GBFM, MGATE, TGFE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FUSIONS = ("sfm", "concat")
AGGREGATIONS: dict[str, Callable[[SHNetConfig], nn.Module]] = {
    "hcam": lambda config: HCAM(config.width, config.dropout),
    "conv3d": lambda config: Conv3DAggregation(config.width),
    "convlstm": lambda config: ConvLSTMAggregation(config.width),
    "mgate": lambda config: MGATE(config.width),
    "tgfe": lambda config: TGFE(config.width),
    "gbfm": lambda config: GBFM(config.width),
    "sum": lambda config: SumAggregation(),
}


class SHNetConfig(PretrainedConfig):
    """Every size of the network; the defaults are the light network that ships with the package."""

    model_type = "shnet"

    backbone_config: Any = None
    """A `transformers` backbone's config or its dictionary with `model_type`; None means MobileNetV2."""
    output_stride: int | None = None
    """8, 16 or 32; dilates a ResNet. None keeps the backbone's own."""
    freeze_backbone: bool = True
    pixel_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    """Statistics of the backbone's training, for pixels in 0..1."""
    image_size: int = 320
    """Side S of the square network input, in pixels."""
    grid: int = 20
    """Side h = w of the common grid; the mask logits are 4·grid on a side."""

    vocabulary: int = 64
    max_words: int = 25
    word_size: int = 128
    """Width of the word embedding; 300 for GloVe."""
    freeze_words: bool = False

    width: int = 128
    """Channels C of levels and words."""
    fusion: str = "sfm"
    """`sfm`, or `concat` for the paper's baseline."""
    fusion_layers: int = 2
    fusion_heads: int = 4
    fusion_ffn: int = 256
    position: bool = True
    aggregation: str = "hcam"
    """`hcam`, or one of its alternatives `conv3d`, `convlstm`, `mgate`, `tgfe`, `gbfm`, `sum`."""
    aspp_rates: list[int] | tuple[int, ...] = (3, 6, 12)
    decoder_widths: list[int] | tuple[int, ...] = (128, 64, 32)
    """Channels of the three convolutions at h, 2h and 4h."""
    dropout: float = 0.1

    threshold: float = 0.5
    """Probability above which a pixel belongs to the mask."""
    calibration: dict[str, Any] | None = None
    """What `refseg calibrate` found the score to be worth; see `refseg.calibration`."""
    training_data: str = ""
    """Where the weights come from, in words: data, initialisation and recipe."""

    def __post_init__(self, **kwargs: Any) -> None:
        backbone = self.backbone_config or {"model_type": "mobilenet_v2", "output_stride": 16}
        if isinstance(backbone, dict):
            backbone = dict(backbone)
            name = backbone.pop("model_type", None)
            if name is None:
                raise RefsegError("backbone_config lacks model_type; name one, such as resnet or mobilenet_v2")
            try:
                backbone = AutoConfig.for_model(name, **backbone)
            except ValueError as fault:
                raise RefsegError(f"transformers knows no backbone {name!r}; try resnet or swin") from fault
            except StrictDataclassError as fault:
                raise RefsegError(f"backbone_config does not fit {name}: {' '.join(str(fault).split())}") from fault
        self.backbone_config = backbone
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        for name, valid in (("fusion", FUSIONS), ("aggregation", tuple(AGGREGATIONS))):
            if getattr(self, name) not in valid:
                raise RefsegError(f"unknown {name} {getattr(self, name)!r}; one of: {', '.join(valid)}")
        for name in ("vocabulary", "max_words", "word_size", "width", "fusion_heads", "fusion_layers", "fusion_ffn"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RefsegError(f"{name} is {value!r}; give a whole number from 1 up")
        for name, low, high in (("image_size", 16, 4096), ("grid", 2, 256)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise RefsegError(f"{name} is {value!r}; give a whole number from {low} to {high}")
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            numbers = len(values) == 3 and all(isinstance(value, int | float) for value in values)
            if not numbers or not all(map(math.isfinite, values)) or (name == "pixel_std" and min(values) <= 0):
                raise RefsegError(f"{name} is {values!r}; give three numbers, the backbone's statistics")
        for name in ("aspp_rates", "decoder_widths"):
            values = getattr(self, name)
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise RefsegError(f"{name} is {values!r}; give whole numbers from 1 up")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise RefsegError(f"dropout is {self.dropout!r}; give a number from 0 up to 1")
        if self.width % self.fusion_heads:
            raise RefsegError(f"width {self.width} does not divide among {self.fusion_heads} fusion_heads")
        if len(self.decoder_widths) != 3:
            raise RefsegError(f"decoder_widths has {len(self.decoder_widths)} values; give three, for h, 2h and 4h")

    @classmethod
    def paper(cls, image_size: int = 320, **changes: Any) -> SHNetConfig:
        """The paper's network (section 4.2): ResNet-101 at output stride 16, frozen, C = 512 on an 18×18 grid."""
        settings: dict[str, Any] = {
            "backbone_config": {"model_type": "resnet", "depths": [3, 4, 23, 3], "layer_type": "bottleneck"},
            "output_stride": 16,
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
            "image_size": image_size,
            "grid": 18,
            "word_size": 300,
            "width": 512,
            "fusion_heads": 8,
            "fusion_ffn": 512,
            "aspp_rates": (6, 12, 24),
            "decoder_widths": (256, 128, 64),
            "dropout": 0.2,
        }
        return cls(**{**settings, **changes})
