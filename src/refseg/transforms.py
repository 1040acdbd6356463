"""From a photograph to the network's square and back; written once, used by training, evaluation and inference."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def to_square(photo: Image.Image, side: int) -> Tensor:
    """An RGB photograph, plainly resized, as (3, side, side) float32 in 0..1 (the paper's input)."""
    square = photo.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def to_photograph(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (N, 1, h, w) as probabilities (N, H, W) float32 at the photograph's size (H, W)."""
    logits = F.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)
    return logits.squeeze(1).sigmoid()
