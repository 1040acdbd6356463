"""What an SHNet is made of: every size, and which of the alternatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from refseg.errors import RefsegError
from refseg.models.interface import ReferringConfig
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.shnet.aggregation import (
    HCAM,
    Conv3DAggregation,
    ConvLSTMAggregation,
    ConvLSTMOfRRN,
    SumAggregation,
)
from refseg.models.shnet.fusion import SFM, ConcatFusion, TileFusion
from refseg.models.shnet.gated_aggregation import GBFM, MGATE, TGFE, GBFMOfBRINet, TGFEOfCMPC

FUSIONS: dict[str, Callable[[SHNetConfig], nn.Module]] = {
    "sfm": lambda config: SFM(
        config.width,
        config.fusion_heads,
        config.fusion_layers,
        config.fusion_ffn,
        config.dropout,
        config.position,
        counted=config.position_code == "counted",
        norm=config.fusion_norm,
        attention_dropout=config.attention_dropout,
    ),
    "tile": lambda config: TileFusion(),
    "concat": lambda config: ConcatFusion(config.width, config.leaky_slope),
}
AGGREGATIONS: dict[str, Callable[[SHNetConfig], nn.Module]] = {
    "hcam": lambda config: HCAM(
        config.fused_width, config.dropout, words=config.width, slope=config.leaky_slope, bias=config.conv_bias
    ),
    "conv3d": lambda config: Conv3DAggregation(config.fused_width, config.leaky_slope, config.conv_bias),
    "convlstm": lambda config: ConvLSTMAggregation(config.fused_width),
    "convlstm-rrn": lambda config: ConvLSTMOfRRN(config.fused_width, config.grid),
    "mgate": lambda config: MGATE(config.fused_width),
    "mgate-cmsa": lambda config: MGATE(config.fused_width, learnt=True),
    "tgfe": lambda config: TGFE(config.fused_width, config.width),
    "tgfe-cmpc": lambda config: TGFEOfCMPC(config.fused_width, config.width, config.grid),
    "gbfm": lambda config: GBFM(config.fused_width, config.width),
    "gbfm-brinet": lambda config: GBFMOfBRINet(config.fused_width),
    "sum": lambda config: SumAggregation(),
}
POSITION_CODES = ("scaled", "counted")


class SHNetConfig(ReferringConfig):
    """Every size of the network; the defaults are the light network that ships with the package."""

    model_type = "shnet"
    magnification: ClassVar[int] = 4

    one_hot: bool = False
    """Whether the LSTM reads each word as a one-hot vector of the vocabulary's length; `word_size` is then not used."""
    embedding_dropout: float | None = None
    """Dropout of the word vectors. None takes `dropout`."""
    fusion: str = "sfm"
    """`sfm`, or `tile` for the paper's baseline of 2·`width` channels, or `concat`, which mixes them to `width`."""
    fusion_norm: bool = True
    """Whether pixels and words are layer-normalised before SFM, as in equation 1."""
    fusion_layers: int = 2
    fusion_heads: int = 4
    fusion_ffn: int = 256
    attention_dropout: float = 0.0
    """Dropout of the shares of attention in SFM."""
    position: bool = True
    """Whether SFM knows the places of pixels and words."""
    position_code: str = "scaled"
    """`scaled`: rows and columns span one range on every grid, so that a network trained on one grid reads another.

    `counted`: columns, rows and words are numbered from 0, as in the released code.
    """
    aggregation: str = "hcam"
    """`hcam`, or an alternative: `conv3d`, `convlstm`, `sum`; `mgate`, `tgfe` and `gbfm` as SHNet's authors built them
    for table 4; `convlstm-rrn`, `mgate-cmsa`, `tgfe-cmpc` and `gbfm-brinet` as the papers of these names have them."""
    leaky_slope: float = 0.1
    """What the leaky ReLUs of projection and aggregation multiply negative values with. 0 makes them ReLUs."""
    conv_bias: bool = False
    """Whether the convolutions of projection and aggregation have a bias before their batch norm, which makes it
    superfluous. The released weights have one."""
    aspp_rates: list[int] | tuple[int, ...] = (3, 6, 12)
    aspp_dropout: float | None = None
    """Share of whole channels that are dropped after ASPP. None drops single values, at the share of `dropout`."""
    image_norm: bool = False
    """Whether ASPP's mean of the image has a batch norm, which needs batches of two expressions or more."""
    decoder_widths: list[int] | tuple[int, ...] = (128, 64, 32)
    """Channels of the decoder's convolutions, three or more: one at h, one at 2h and the others at 4h."""
    decoder_slope: float = 0.1
    """What the leaky ReLUs of ASPP and decoder multiply negative values with. 0 makes them ReLUs."""
    decoder_dropout: float = 0.0
    """Share of whole channels that are dropped after each of the decoder's convolutions but the last."""
    align_corners: bool = False
    """Whether bilinear resizing lays the corners of the small map onto those of the large one."""
    mask_side: int | None = None
    """Side of the square of mask logits, to which the decoder's are resized. None leaves four times the grid."""

    @property
    def output_side(self) -> int:
        return self.mask_side or super().output_side

    @property
    def fused_width(self) -> int:
        """Channels of a level after fusion."""
        return 2 * self.width if self.fusion == "tile" else self.width

    def check(self) -> None:
        """Raises RefsegError for the first setting that does not fit."""
        self.check_choice("fusion", FUSIONS)
        self.check_choice("aggregation", AGGREGATIONS)
        self.check_choice("position_code", POSITION_CODES)
        super().check()
        self.check_whole_numbers(("fusion_heads", "fusion_layers", "fusion_ffn"))
        if self.mask_side is not None:
            self.check_whole_numbers(("mask_side",), 2, 4096)
        for name in ("leaky_slope", "decoder_slope", "attention_dropout", "decoder_dropout"):
            self.check_share(name)
        for name in ("embedding_dropout", "aspp_dropout"):
            if getattr(self, name) is not None:
                self.check_share(name)
        for name in ("aspp_rates", "decoder_widths"):
            values = getattr(self, name)
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise RefsegError(f"{name} is {values!r}; give whole numbers from 1 up")
        if self.width % self.fusion_heads:
            raise RefsegError(f"width {self.width} does not divide among {self.fusion_heads} fusion_heads")
        if len(self.decoder_widths) < 3:
            raise RefsegError(
                f"decoder_widths has {len(self.decoder_widths)} values; give three or more, for h, 2h and 4h"
            )

    def check_share(self, name: str) -> None:
        """Raises RefsegError for a setting that is no number from 0 up to 1."""
        value = getattr(self, name)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise RefsegError(f"{name} is {value!r}; give a number from 0 up to 1")

    @classmethod
    def paper(cls, image_size: int = 320, **changes: Any) -> SHNetConfig:
        """The paper's network (section 4.2): ResNet-101 at output stride 16, frozen, C = 512 on an 18×18 grid.

        The paper does not say how its rectifiers leak; they do as those of the released code.
        """
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
            "leaky_slope": 0.01,
            "aspp_rates": (6, 12, 24),
            "decoder_widths": (256, 128, 64),
            "decoder_slope": 0.0,
            "dropout": 0.2,
        }
        return cls(**{**settings, **changes})

    @classmethod
    def released(cls, image_size: int = 320, **changes: Any) -> SHNetConfig:
        """The network that the paper's authors released: the paper's, and what their code does where it is silent.

        docs/researchers.md lists each difference. Its mask logits are those of the loss, half the input's side.
        """
        settings: dict[str, Any] = {
            "max_words": 30,
            "freeze_words": True,
            "embedding_dropout": 0.0,
            "fusion_norm": False,
            "attention_dropout": 0.2,
            "position_code": "counted",
            "conv_bias": True,
            "aspp_dropout": 0.25,
            "image_norm": True,
            "decoder_widths": (512, 512, 512, 256),
            "decoder_dropout": 0.2,
            "align_corners": True,
            "mask_side": image_size // 2,
            "threshold": 0.4,
        }
        return cls.paper(image_size, **{**settings, **changes})
