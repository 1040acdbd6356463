"""The SHNet of the tests: small enough for every run, with each of its parts."""

from __future__ import annotations

from typing import Any

from refseg.models.shnet import SHNetConfig

TINY: dict[str, Any] = {
    "backbone_config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16},
    "image_size": 64,
    "grid": 4,
    "vocabulary": 12,
    "word_size": 8,
    "width": 16,
    "fusion_layers": 1,
    "fusion_heads": 2,
    "fusion_ffn": 16,
    "aspp_rates": [1, 2, 3],
    "decoder_widths": [8, 8, 8],
}


def tiny_config(**changes: Any) -> SHNetConfig:
    return SHNetConfig(**{**TINY, **changes})
