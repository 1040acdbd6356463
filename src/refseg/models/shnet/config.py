"""What an SHNet is made of: every size, and which of the alternatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from refseg.errors import RefsegError
from refseg.models.interface import ReferringConfig
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.shnet.aggregation import HCAM, Conv3DAggregation, ConvLSTMAggregation, SumAggregation
from refseg.models.shnet.fusion import SFM, ConcatFusion
from refseg.models.shnet.gated_aggregation import GBFM, MGATE, TGFE

FUSIONS: dict[str, Callable[[SHNetConfig], nn.Module]] = {
    "sfm": lambda config: SFM(
        config.width,
        config.fusion_heads,
        config.fusion_layers,
        config.fusion_ffn,
        config.dropout,
        config.position,
    ),
    "concat": lambda config: ConcatFusion(config.width),
}
AGGREGATIONS: dict[str, Callable[[SHNetConfig], nn.Module]] = {
    "hcam": lambda config: HCAM(config.width, config.dropout),
    "conv3d": lambda config: Conv3DAggregation(config.width),
    "convlstm": lambda config: ConvLSTMAggregation(config.width),
    "mgate": lambda config: MGATE(config.width),
    "tgfe": lambda config: TGFE(config.width),
    "gbfm": lambda config: GBFM(config.width),
    "sum": lambda config: SumAggregation(),
}


class SHNetConfig(ReferringConfig):
    """Every size of the network; the defaults are the light network that ships with the package."""

    model_type = "shnet"
    magnification: ClassVar[int] = 4

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

    def check(self) -> None:
        """Raises RefsegError for the first setting that does not fit."""
        self.check_choice("fusion", FUSIONS)
        self.check_choice("aggregation", AGGREGATIONS)
        super().check()
        self.check_whole_numbers(("fusion_heads", "fusion_layers", "fusion_ffn"))
        for name in ("aspp_rates", "decoder_widths"):
            values = getattr(self, name)
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise RefsegError(f"{name} is {values!r}; give whole numbers from 1 up")
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
