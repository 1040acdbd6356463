"""Pretrained backbones: training starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from refseg.errors import RefsegError, first_line
from refseg.models.interface import ReferringNetwork
from refseg.models.parts.detectors import CLASSES, DetectorLevels
from refseg.words import WordTokenizer


def load_backbone(network: ReferringNetwork, name: str) -> None:
    """Initialises the backbone from a transformers checkpoint (a folder or a hub id), or from a detector's folder.

    Raises RefsegError if the weights cannot be read or do not fit.
    """
    net: Any = network.image_encoder.backbone.net
    wanted = net.state_dict()
    if isinstance(network.image_encoder.backbone, DetectorLevels):
        state = load_detector(Path(name))
        lacking = sorted(key for key in wanted if key not in state or state[key].shape != wanted[key].shape)
    else:
        state, lacking = _load_transformers(net, name)
    if lacking:
        raise RefsegError(f"backbone_weights: {name} does not fit the backbone; it lacks {lacking[0]} in its shape")
    net.load_state_dict({key: state[key] for key in wanted})


def _load_transformers(net: Any, name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The checkpoint's weights by the backbone's names, and the names of those that are missing."""
    try:
        trained, report = type(net).from_pretrained(
            name, config=net.config, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as fault:
        raise RefsegError(f"backbone_weights: {name} cannot be read ({first_line(fault)})") from fault
    # A classifier's checkpoint has no norms for the levels of a backbone; they start at one and zero.
    wanted = net.state_dict()
    lacking = (key for key in report["missing_keys"] if key in wanted and "hidden_states_norms." not in key)
    return trained.state_dict(), sorted(lacking)


def load_detector(folder: Path) -> dict[str, Tensor]:
    """The weights of model.safetensors in the folder, as float32, by the detector's names and without its boxes.

    Raises RefsegError if the file is missing or cannot be read.
    """
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as fault:
        raise RefsegError(
            f"{path} cannot be read ({first_line(fault)}); give the folder of NanoDet's or PicoDet's weights"
        ) from fault
    # The last convolution of a head gives the classes first, then the sides of the boxes.
    return {
        name: (tensor[: len(CLASSES)] if ".gfl_cls." in name or ".out." in name else tensor).float()
        for name, tensor in state.items()
    }


def name_scores(network: ReferringNetwork, tokenizer: WordTokenizer) -> None:
    """Starts the projections of a detector's class scores at the word vectors of the classes' names, turned at random.

    Each place then has a vector in the space of the words (ConSE, Norouzi et al. 2014). What is learnt about one name
    also serves similar names, of which there may be few examples or none. Does nothing for a backbone without scores.
    """
    encoder = network.image_encoder
    if not isinstance(encoder.backbone, DetectorLevels) or "scores" not in encoder.backbone.maps:
        return
    tokens = tokenizer(CLASSES)
    ids, mask = torch.as_tensor(tokens.ids), torch.as_tensor(tokens.mask)
    vectors = network.text_encoder.embedding(ids).detach() * mask.unsqueeze(-1)
    names = vectors.sum(dim=1) / mask.sum(dim=1, keepdim=True)  # (80, word_size)
    names = names - names.mean(dim=0)
    turn = torch.empty(network.config.width, network.config.word_size)
    nn.init.orthogonal_(turn)
    for project in encoder.project:
        weight = project[0].weight.data  # (C, channels, 3, 3), the scores are the last channels
        weight[:, -len(CLASSES) :] = 0
        weight[:, -len(CLASSES) :, 1, 1] = turn @ names.T
