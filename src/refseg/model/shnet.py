"""SHNet: a photograph and a sentence in, mask logits out. Start here.

Comprehensive Multi-Modal Interactions for Referring Image Segmentation, Findings of ACL 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from refseg.errors import RefsegError
from refseg.model.aggregation import HCAM, Conv3DAggregation, ConvLSTMAggregation, SumAggregation
from refseg.model.decoder import Decoder
from refseg.model.fusion import SFM, ConcatFusion
from refseg.model.gated_aggregation import GBFM, MGATE, TGFE
from refseg.model.image_encoder import ImageEncoder, Levels, build_backbone
from refseg.model.text_encoder import TextEncoder

if TYPE_CHECKING:
    from refseg.model.fast import FastSHNet

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


class SHNet(PreTrainedModel):
    """The figure of the paper as a network; loss, thresholds and photographs' own sizes live elsewhere."""

    config_class = SHNetConfig
    base_model_prefix = "shnet"
    main_input_name = "images"
    config: SHNetConfig

    def __init__(self, config: SHNetConfig) -> None:
        super().__init__(config)
        backbone = build_backbone(config.backbone_config, config.output_stride)
        self.image_encoder = ImageEncoder(
            backbone,
            backbone.channels,
            config.width,
            config.grid,
            list(config.pixel_mean),
            list(config.pixel_std),
            config.freeze_backbone,
        )
        self.text_encoder = TextEncoder(
            config.vocabulary, config.word_size, config.width, config.dropout, config.freeze_words
        )
        self.fusion = build_fusion(config)
        self.aggregation = build_aggregation(config)
        self.decoder = Decoder(config.width, list(config.aspp_rates), list(config.decoder_widths), config.dropout)
        self.post_init()

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        images: Tensor | None = None,
        levels: Levels | None = None,
        photo_of: Tensor | None = None,
    ) -> Tensor:
        """Mask logits (B, 1, 4h, 4w) of B expressions about I photographs.

        ids (B, T) int64 and mask (B, T) True at words; images (I, 3, S, S) in 0..1, or the levels that
        `encode` made of them; photo_of (B,) int64 names each expression's photograph, and may be left
        out where I is 1 or B.
        """
        levels = levels or self.encode(images)  # 3 × (I, C, h, w)
        words = self.text_encoder(ids, mask)  # (B, T, C)
        fused = [self.fusion(per_expression(level, photo_of, ids), words, mask) for level in levels]
        joint = self.aggregation(fused, mask)  # (B, C, h, w)
        return self.decoder(joint)

    def encode(self, images: Tensor | None, grid: int | None = None) -> Levels:
        """images (I, 3, S, S) in 0..1 → three levels (I, C, h, w); they serve any number of expressions."""
        if images is None:
            raise RefsegError("there is no photograph; give images, or the levels that encode made of them")
        return self.image_encoder(images, grid)

    def optimize(self) -> SHNet | FastSHNet:
        """The form that answers fastest where the network is: `fast.FastSHNet` on a CPU, else this one.

        Its weights are copies, for inference alone. A network without SFM or HCAM stays as it is.
        """
        from refseg.model.fast import FastSHNet

        plain = self.device.type != "cpu" or self.dtype != torch.float32
        if plain or not isinstance(self.fusion, SFM) or not isinstance(self.aggregation, HCAM):
            return self.eval()
        return FastSHNet(self.eval())

    def _init_weights(self, module: nn.Module) -> None:
        """Attention and words start small; the backbone keeps the initialisation it was built with."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def per_expression(level: Tensor, photo_of: Tensor | None, ids: Tensor) -> Tensor:
    """The level of each expression's photograph, (B, C, h, w)."""
    if photo_of is not None:
        return level.index_select(0, photo_of)  # indexing would do, but its gradient is slow on a CPU
    return level.expand(len(ids), -1, -1, -1)


def build_fusion(config: SHNetConfig) -> nn.Module:
    if config.fusion == "concat":
        return ConcatFusion(config.width)
    return SFM(
        config.width,
        config.fusion_heads,
        config.fusion_layers,
        config.fusion_ffn,
        config.dropout,
        config.position,
    )


def build_aggregation(config: SHNetConfig) -> nn.Module:
    return AGGREGATIONS[config.aggregation](config)


# `AutoModel.from_pretrained(folder)` gives an SHNet once this file is imported, as by `from refseg import SHNet`.
AutoConfig.register(SHNetConfig.model_type, SHNetConfig, exist_ok=True)
AutoModel.register(SHNetConfig, SHNet, exist_ok=True)
