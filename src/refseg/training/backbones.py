"""Backbones that a training starts from."""

from __future__ import annotations

from typing import Any

from refseg.errors import RefsegError, first_line
from refseg.models.interface import ReferringNetwork


def load_backbone(model: ReferringNetwork, name: str) -> None:
    """Initialises the backbone from a transformers checkpoint: a folder or a hub id."""
    net: Any = model.image_encoder.backbone.net
    try:
        trained, report = type(net).from_pretrained(
            name, config=net.config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as fault:
        raise RefsegError(f"backbone_weights: {name} cannot be read ({first_line(fault)})") from fault
    # A classifier's checkpoint has no norms for the levels of a backbone; they start at one and zero.
    own = net.state_dict()
    lacking = sorted(key for key in report["missing_keys"] if key in own and "hidden_states_norms." not in key)
    if lacking:
        raise RefsegError(f"backbone_weights: {name} does not fit the backbone; it lacks {lacking[0]}")
    net.load_state_dict({key: value for key, value in trained.state_dict().items() if key in own})
