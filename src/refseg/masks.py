"""Masks and their other forms: run lengths, polygons, and how far two of them agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refseg.photo import MAX_PIXELS

Mask = npt.NDArray[np.bool_]
"""(H, W) bool, True at the referent."""


def encode_mask(mask: Mask) -> str:
    """Compressed COCO run lengths of a mask (H, W)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def decode_mask(counts: str, height: int, width: int) -> Mask:
    """The mask (H, W) of compressed COCO run lengths. Raises ValueError if they are none of that size.

    pycocotools reads and writes past its memory, or leaves some of the mask to chance, where they are not checked.
    """
    if not type(height) is type(width) is int or min(height, width) < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"it has {height}×{width} pixels")
    runs = run_lengths(counts.encode("ascii"))
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("its run lengths do not add up to its size")
    return np.asarray(coco_mask.decode({"size": [height, width], "counts": counts}), dtype=bool)


def run_lengths(counts: bytes) -> npt.NDArray[np.int64]:
    """COCO's compressed run lengths as numbers: six bits a character, from the fourth on as differences.

    Raises ValueError if they are no run lengths.
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not bits.size:
        return bits
    ends = np.flatnonzero(np.append((bits[:-1] & 32) == 0, True))
    starts = np.append(0, ends[:-1] + 1)
    place = np.arange(bits.size) - np.repeat(starts, ends - starts + 1)
    if bits.min() < 0 or bits.max() > 63 or place.max() > 6:
        raise ValueError("its run lengths are no run lengths")
    if bits[-1] & 32:
        raise ValueError("its run lengths are cut short")
    runs = np.add.reduceat((bits & 31) << (5 * place), starts)
    runs -= (bits[ends] & 16) >> 4 << 5 * (place[ends] + 1)  # the sign
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks of one size, 0..1; 0 where both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


def polygons(mask: Mask) -> list[list[int]]:
    """The outline of a mask (H, W) as COCO-style rings [x, y, x, y, …] along pixel edges, in pixels.

    Exact under the even-odd rule. Outer rings run clockwise as displayed; holes are rings of their own and run
    counter-clockwise; a reader that unites all rings, as pycocotools does, fills them.
    """
    return [ring.ravel().tolist() for ring in _rings(mask)]


def _rings(mask: Mask) -> list[npt.NDArray[np.int64]]:
    """The closed boundary lines of a mask as corners (N, 2) xy; regions that touch at a corner stay apart.

    Horizontal and vertical pixel edges are joined into maximal runs, each directed with the mask on its right
    as displayed, so that a ring is a cycle that alternates between the two.
    """
    width = mask.shape[1] + 1
    padded = np.pad(mask, 1)
    # Where two pixels meet only at a corner, four runs meet: a run of the upper pixel joins the upper one.
    crossing = (padded[:-1, :-1] == padded[1:, 1:]) & (padded[:-1, 1:] == padded[1:, :-1])
    crossing &= padded[:-1, :-1] != padded[:-1, 1:]

    def key(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], lower: Mask) -> npt.NDArray[np.int64]:
        joined: npt.NDArray[np.int64] = (y * width + x) * 2 + (crossing[y, x] & lower)
        return joined

    y, x_low, x_high, below = _runs(mask)  # rightwards above the mask, leftwards below it
    x_start, x_end = np.where(below, x_low, x_high), np.where(below, x_high, x_low)
    x, y_low, y_high, right = _runs(mask.T)  # upwards on the mask's left, downwards on its right
    y_start, y_end = np.where(right, y_high, y_low), np.where(right, y_low, y_high)

    vertical_after = _match(key(x_end, y, below), key(x, y_start, ~right))
    horizontal_after = _match(key(x, y_end, right), key(x_start, y, below))
    successor = horizontal_after[vertical_after]
    corners = np.stack([x_start, y, x_end, y], axis=1).reshape(-1, 2, 2)
    return [corners[cycle].reshape(-1, 2) for cycle in _cycles(successor.tolist())]


def _match(ends: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each end the index of the start with the same key; both hold the same keys, each once."""
    match = np.empty_like(ends)
    match[np.argsort(ends)] = np.argsort(starts)
    return match


def _runs(mask: Mask) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], Mask]:
    """Maximal horizontal runs of pixel edges: line y, x from, x to, and whether the mask lies below."""
    step = np.diff(np.pad(mask, 1).astype(np.int8), axis=0)
    starts = (step[:, 1:] != step[:, :-1]) & (step[:, 1:] != 0)
    ends = (step[:, 1:] != step[:, :-1]) & (step[:, :-1] != 0)
    y, x_from = np.nonzero(starts)
    x_to = np.nonzero(ends)[1]
    return y, x_from, x_to, step[y, x_from + 1] > 0


def _cycles(successor: list[int]) -> list[list[int]]:
    seen = bytearray(len(successor))
    cycles = []
    for first in range(len(successor)):
        cycle = []
        while not seen[first]:
            seen[first] = 1
            cycle.append(first)
            first = successor[first]
        if cycle:
            cycles.append(cycle)
    return cycles
