"""SHNet: a photograph and a sentence in, mask logits out. Start here.

Comprehensive Multi-Modal Interactions for Referring Image Segmentation, Findings of ACL 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from refseg.errors import RefsegError
from refseg.models.parts.decoder import Decoder
from refseg.models.parts.image_encoder import ImageEncoder, Levels, build_backbone
from refseg.models.parts.text_encoder import TextEncoder
from refseg.models.shnet.aggregation import HCAM
from refseg.models.shnet.config import AGGREGATIONS, SHNetConfig
from refseg.models.shnet.fusion import SFM, ConcatFusion

if TYPE_CHECKING:
    from refseg.engines.fast import FastSHNet


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
        from refseg.engines.fast import FastSHNet

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
