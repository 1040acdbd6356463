"""SHNet: a photograph and a sentence in, mask logits out. Start here.

Comprehensive Multi-Modal Interactions for Referring Image Segmentation, Findings of ACL 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refseg.models.interface import Features, Graphs, Prediction, ReferringNetwork, TokenBatch
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.decoder import ASPP, Decoder
from refseg.models.parts.image_encoder import ImageEncoder, PooledLevel
from refseg.models.parts.text_encoder import TextEncoder
from refseg.models.shnet.config import AGGREGATIONS, FUSIONS, SHNetConfig
from refseg.models.shnet.fusion import SFM, attention
from refseg.models.shnet.graphs import sfm_graphs


class SHNet(ReferringNetwork):
    """The figure of the paper as a network."""

    config_class = SHNetConfig
    paper = "Comprehensive Multi-Modal Interactions for Referring Image Segmentation, Findings of ACL 2022"
    config: SHNetConfig

    def __init__(self, config: SHNetConfig) -> None:
        super().__init__(config)
        self.image_encoder = build_image_encoder(config)
        self.text_encoder = build_text_encoder(config)
        self.fusion = FUSIONS[config.fusion](config)
        self.aggregation = AGGREGATIONS[config.aggregation](config)
        self.decoder = build_decoder(config)
        self.post_init()

    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → three levels (I, C, h, w), h = w the grid; see `ReferringNetwork.encode`."""
        return self.image_encoder(images, grid)

    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """The levels of each expression's photograph, 3 × (B, C, h, w), and the sentences → mask logits."""
        words = self.text_encoder(tokens.ids, tokens.mask)  # (B, T, C)
        fused = [self.fusion(level, words, tokens.mask) for level in features]
        joint = self.aggregation(fused, tokens.mask)  # (B, C, h, w)
        return Prediction(self.decoder(joint))  # (B, 1, 4h, 4w), or mask_side

    def attention(self, tokens: TokenBatch, features: Features) -> Tensor:
        """That of SFM, (3, layers, hw+T, hw+T); see `ReferringNetwork.attention` and `fusion.attention`."""
        if not isinstance(self.fusion, SFM):
            return super().attention(tokens, features)
        words = self.text_encoder(tokens.ids, tokens.mask)
        return torch.stack([attention(self.fusion, level, words, tokens.mask)[:, 0] for level in features])

    def graphs(self) -> Graphs | None:
        """Those that compute SFM's first layer with the photograph; see `shnet.graphs`."""
        return sfm_graphs(self) if isinstance(self.fusion, SFM) else None

    def _init_weights(self, module: nn.Module) -> None:
        """Attention and words start small; the backbone keeps the initialisation it was built with."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_image_encoder(config: SHNetConfig) -> ImageEncoder:
    backbone = build_backbone(config.backbone_config, config.output_stride)
    levels = [
        PooledLevel(channels, config.width, config.leaky_slope, config.conv_bias) for channels in backbone.channels
    ]
    return ImageEncoder(
        backbone, levels, config.grid, config.pixel_mean, config.pixel_std, freeze=config.freeze_backbone
    )


def build_text_encoder(config: SHNetConfig) -> TextEncoder:
    dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
    size = None if config.one_hot else config.word_size
    return TextEncoder(config.vocabulary, size, config.width, dropout, freeze=config.freeze_words)


def build_decoder(config: SHNetConfig) -> Decoder:
    aspp = ASPP(
        config.width,
        config.aspp_rates,
        config.dropout if config.aspp_dropout is None else config.aspp_dropout,
        inputs=config.fused_width,
        slope=config.decoder_slope,
        image_norm=config.image_norm,
        whole_channels=config.aspp_dropout is not None,
    )
    return Decoder(
        aspp,
        config.width,
        config.decoder_widths,
        slope=config.decoder_slope,
        dropout=config.decoder_dropout,
        align_corners=config.align_corners,
        cell=config.output_side / config.grid,
    )
