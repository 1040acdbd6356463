"""From a photograph to the network's square and back; written once, used by training, evaluation and inference."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
F = TypeVar("F", np.float32, np.float64)
Span = tuple[float, float]
"""Start and length of a part of an axis, as shares of the whole."""


def to_square(photo: Image.Image, side: int, *, letterbox: bool = False) -> Floats:
    """An RGB photograph as (3, side, side) float32 in 0..1: plainly resized (the paper's input), or letterboxed."""
    if letterbox:
        square = letterboxed(photo, side, Image.Resampling.BILINEAR)
    else:
        square = photo.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32).transpose(2, 0, 1)) / np.float32(255)


def letterboxed(picture: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """A picture scaled to fit, in the middle of a black square of `side` pixels."""
    (top, height), (left, width) = shown_at((picture.height, picture.width), side)
    square = Image.new(picture.mode, (side, side))
    square.paste(picture.resize((width, height), resample, reducing_gap=2.0), (left, top))
    return square


def shown_at(size: tuple[int, int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a square of `side` pixels shows a letterboxed photograph (H, W): start and length of rows and columns."""
    lengths = [max(1, round(length * side / max(size))) for length in size]
    rows, columns = (((side - length) // 2, length) for length in lengths)
    return rows, columns


def to_photograph(mask_logits: Floats, size: tuple[int, int], *, letterbox: int | None = None) -> Floats:
    """Mask logits (N, 1, h, w) as probabilities (N, H, W) float32 at the photograph's size (H, W).

    The logits are resized bilinearly, with half-pixel centres and without antialiasing, then the sigmoid is taken.
    `letterbox` is the side of the network's square, in pixels, if it shows the photograph letterboxed.
    """
    spans = ((0.0, 1.0), (0.0, 1.0))
    if letterbox:
        rows, columns = ((start / letterbox, length / letterbox) for start, length in shown_at(size, letterbox))
        spans = (rows, columns)
    resized = np.empty((len(mask_logits), *size), dtype=np.float32)
    for place, logits in zip(resized, np.asarray(mask_logits, dtype=np.float32), strict=True):
        place[...] = sigmoid(_resize(logits[0], size, spans))
    return resized


def sigmoid(values: npt.NDArray[F]) -> npt.NDArray[F]:
    """1 / (1 + exp(−x)), in a new array."""
    with np.errstate(over="ignore"):  # where exp is infinite, its reciprocal is the 0 that is meant
        result = np.exp(-values)
    result += 1
    return np.reciprocal(result, out=result)


def _resize(logits: Floats, size: tuple[int, int], spans: tuple[Span, Span]) -> Floats:
    """The spans of rows and columns of logits (h, w) → (H, W)."""
    low, high, share = _neighbours(size[1], logits.shape[1], spans[1])
    wide = logits[:, low]
    wide += (logits[:, high] - wide) * share
    low, high, share = _neighbours(size[0], logits.shape[0], spans[0])
    tall = wide[low]
    step = wide[high]
    step -= tall
    step *= share[:, None]
    tall += step
    return tall


def _neighbours(length: int, whole: int, span: Span) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For each of `length` places over the span the two of `whole` it lies between, and the share of the second."""
    centre = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(span[1] * whole / length)
    centre += np.float32(span[0] * whole - 0.5)
    place = np.maximum(centre, np.float32(0))
    low = np.minimum(place.astype(np.int64), whole - 1)
    return low, np.minimum(low + 1, whole - 1), place - low.astype(np.float32)
