"""The paper's second backbone: DeepLabv3+ on ResNet-101, trained on Pascal VOC, as a `transformers` ResNet.

The weights are those of the PyTorch port jfzhang95/pytorch-deeplab-xception (MIT). The port's ResNet strides in the
3×3 convolution, as `transformers` does without `downsample_in_bottleneck`. Its last stage has three blocks, dilated by
2, 4 and 8 at output stride 16; `output_stride: 16` dilates a ResNet here in the same way.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from refseg.errors import RefsegError, first_line
from refseg.models.reading import quiet_transformers

HEADS = ("aspp.", "decoder.")
"""DeepLab's own head. SHNet replaces it."""

# The published file has its best score as a NumPy number. Apart from that, only tensors and plain values are read.
_number = np.float64(0).__reduce__()[0]
_ADMITTED: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


def convert_deeplab(checkpoint: Path, folder: Path) -> ResNetConfig:
    """Writes the backbone of the port's checkpoint for `backbone_weights`, and returns its config.

    `checkpoint` is the port's .pth.tar file. Raises RefsegError if it needs more than tensors and numbers, cannot be
    read, lacks a weight, or has an unknown one.
    """
    state = read_state(checkpoint)
    found = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    config = config_of(found, checkpoint)
    net = ResNetModel(config)
    names = {port_name(weight): weight for weight in net.state_dict()}
    stray = [name for name in state if not name.startswith(("backbone.", *HEADS))]
    unknown = stray + [f"backbone.{name}" for name in found if name not in names]
    # PyTorch before 0.4.1 did not count batches.
    missing = [f"backbone.{name}" for name in names if name not in found and not name.endswith("num_batches_tracked")]
    for fault, keys in (("lacks", missing), ("holds an unknown", unknown)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise RefsegError(
                f"{checkpoint} {fault} {', '.join(keys[:3])}{more}; give the port's DeepLabv3+ on ResNet-101"
            )
    try:
        net.load_state_dict({names[name]: value for name, value in found.items()}, strict=False)
    except RuntimeError as fault:
        reason = str(fault).splitlines()[-1].strip()
        raise RefsegError(f"{checkpoint} holds weights of other shapes than a ResNet's ({reason})") from fault
    with quiet_transformers():
        net.save_pretrained(folder)
    return config


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The port's weights by its own names."""
    try:
        with torch.serialization.safe_globals(_ADMITTED):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as fault:
        raise RefsegError(f"there is no file {checkpoint}; give the port's deeplab-resnet.pth.tar") from fault
    except pickle.UnpicklingError as fault:
        asked = re.search(r"GLOBAL (\S+)", str(fault))
        reason = f"asks for {asked[1]}, and weights are tensors and numbers" if asked else "is no plain checkpoint"
        raise RefsegError(f"{checkpoint} is refused: it {reason}; get a new copy from its publisher") from fault
    except Exception as fault:  # a damaged file surfaces as nearly any error
        raise RefsegError(
            f"{checkpoint} cannot be read as a checkpoint ({first_line(fault)}); get a new copy"
        ) from fault
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RefsegError(f"{checkpoint} holds no state_dict of weights; give the port's deeplab-resnet.pth.tar")
    return {str(name): value for name, value in state.items()}


def config_of(found: dict[str, Tensor], checkpoint: Path) -> ResNetConfig:
    """The sizes of the ResNet whose weights these are."""
    try:
        blocks = [[name.split(".")[1] for name in found if name.startswith(f"layer{stage}.")] for stage in (1, 2, 3, 4)]
        return ResNetConfig(
            embedding_size=found["conv1.weight"].shape[0],
            hidden_sizes=[found[f"layer{stage}.0.conv3.weight"].shape[0] for stage in (1, 2, 3, 4)],
            depths=[len(set(stage)) for stage in blocks],
            layer_type="bottleneck",
            downsample_in_bottleneck=False,
        )
    except KeyError as fault:
        raise RefsegError(
            f"{checkpoint} lacks backbone.{fault.args[0]}; give the port's DeepLabv3+ on ResNet-101"
        ) from fault


def port_name(weight: str) -> str:
    """The port's name of a `transformers` ResNet's weight: layer1.0.conv2.weight and the like."""
    name = weight.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    name = re.sub(r"encoder\.stages\.(\d+)\.layers", lambda stage: f"layer{int(stage[1]) + 1}", name)
    name = re.sub(r"layer\.(\d)\.convolution", lambda number: f"conv{int(number[1]) + 1}", name)
    name = re.sub(r"layer\.(\d)\.normalization", lambda number: f"bn{int(number[1]) + 1}", name)
    return name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
