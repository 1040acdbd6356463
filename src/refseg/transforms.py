"""From a photograph to the network's square and back; written once, used by training, evaluation and inference."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
F = TypeVar("F", np.float32, np.float64)


def to_square(photo: Image.Image, side: int) -> Floats:
    """An RGB photograph, plainly resized, as (3, side, side) float32 in 0..1 (the paper's input)."""
    square = photo.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32).transpose(2, 0, 1)) / np.float32(255)


def to_photograph(mask_logits: Floats, size: tuple[int, int]) -> Floats:
    """Mask logits (N, 1, h, w) as probabilities (N, H, W) float32 at the photograph's size (H, W).

    The logits are resized bilinearly, with half-pixel centres and without antialiasing, then the sigmoid is taken.
    """
    resized = np.empty((len(mask_logits), *size), dtype=np.float32)
    for place, logits in zip(resized, np.asarray(mask_logits, dtype=np.float32), strict=True):
        place[...] = sigmoid(_resize(logits[0], size))
    return resized


def sigmoid(values: npt.NDArray[F]) -> npt.NDArray[F]:
    """1 / (1 + exp(−x)), in a new array."""
    with np.errstate(over="ignore"):  # where exp is infinite, its reciprocal is the 0 that is meant
        result = np.exp(-values)
    result += 1
    return np.reciprocal(result, out=result)


def _resize(logits: Floats, size: tuple[int, int]) -> Floats:
    """logits (h, w) → (H, W)."""
    low, high, share = _neighbours(size[1], logits.shape[1])
    wide = logits[:, low]
    wide += (logits[:, high] - wide) * share
    low, high, share = _neighbours(size[0], logits.shape[0])
    tall = wide[low]
    step = wide[high]
    step -= tall
    step *= share[:, None]
    tall += step
    return tall


def _neighbours(length: int, whole: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For each of `length` places the two of `whole` it lies between, and the share of the second."""
    centre = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(whole / length) - np.float32(0.5)
    place = np.maximum(centre, np.float32(0))
    low = np.minimum(place.astype(np.int64), whole - 1)
    return low, np.minimum(low + 1, whole - 1), place - low.astype(np.float32)
