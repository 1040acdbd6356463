"""Segmentations of annotations, checked and encoded: polygons, run lengths of either kind, masks in files."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.errors import RefsegError, first_line
from refseg.masks import Mask, encode_mask, run_lengths

Size = tuple[int, int]
"""Height and width, in pixels."""


class Reason(StrEnum):
    """Why an expression cannot be used."""

    NO_PHOTOGRAPH = "photograph missing"
    UNREADABLE = "photograph unreadable"
    NO_MASK = "mask missing"
    DAMAGED = "mask damaged"
    SIZE = "mask of another size than the photograph"
    EMPTY = "empty mask"
    NO_WORDS = "expression without words"


class Unusable(Exception):  # noqa: N818 (a fact about one item, not a fault of the program)
    """A photograph or a mask that costs its expressions, not the dataset."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def declared_size(segmentation: Any) -> Size | None:
    """The size that a mask states. Polygons state none. Raises Unusable."""
    try:
        if isinstance(segmentation, dict):
            height, width = segmentation["size"]
            return int(height), int(width)
        if isinstance(segmentation, Path):
            return _mat_size(segmentation) if segmentation.suffix == ".mat" else _png_size(segmentation)
    except FileNotFoundError as fault:
        raise Unusable(Reason.NO_MASK, f"there is no {Path(segmentation).name}") from fault
    except (RefsegError, Unusable):
        raise
    except Exception as fault:  # a damaged file can raise any error of any decoder
        raise Unusable(Reason.DAMAGED, first_line(fault)) from fault
    return None


def encode_segmentation(segmentation: Any, size: Size) -> dict[str, Any]:
    """Compressed COCO run lengths of polygons, of run lengths of either kind, or of a mask's file.

    Raises Unusable if there is no mask, or if it is not a mask.
    """
    if segmentation is None or segmentation == []:
        raise Unusable(Reason.NO_MASK, "the annotations have none")
    try:
        if isinstance(segmentation, Path):
            inside = _mat_mask(segmentation) if segmentation.suffix == ".mat" else _png_mask(segmentation)
            return {"size": list(size), "counts": encode_mask(inside).encode("ascii")}
        if isinstance(segmentation, list):
            _check_polygons(segmentation, size)
            merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
            return merged
        return _run_lengths(segmentation, size)
    except (RefsegError, Unusable):
        raise
    except Exception as fault:
        raise Unusable(Reason.DAMAGED, first_line(fault)) from fault


def _check_polygons(polygons: list[Any], size: Size) -> None:
    """Checked here because pycocotools is compiled: it takes memory by the length of an edge, and checks nothing."""
    limit = 2 * max(size)
    for ring in polygons:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
            raise Unusable(Reason.DAMAGED, "a polygon needs three points or more, as a flat list of x and y")
        if not all(isinstance(x, int | float) and math.isfinite(x) and -limit <= x <= limit for x in ring):
            raise Unusable(Reason.DAMAGED, "a polygon lies far outside the photograph")


def _run_lengths(segmentation: Any, size: Size) -> dict[str, Any]:
    """Checked in Python first, because crafted run lengths make pycocotools write past its memory."""
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
        counts = run_lengths(counts.encode("ascii") if isinstance(counts, str) else counts).tolist()
    if (
        not isinstance(counts, list)
        or not all(isinstance(n, int) and n >= 0 for n in counts)
        or sum(counts) != size[0] * size[1]
    ):
        raise Unusable(Reason.DAMAGED, "its run lengths do not add up to its size")
    encoded: dict[str, Any] = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return encoded


def _png_size(path: Path) -> Size:
    with Image.open(path, formats=("PNG",)) as image:
        return image.height, image.width


def _png_mask(path: Path) -> Mask:
    with Image.open(path, formats=("PNG",)) as image:
        return np.asarray(image.convert("L")) > 0


def _mat_size(path: Path) -> Size:
    if not path.is_file():
        raise FileNotFoundError(path)
    for name, shape, _ in _scipy_io().whosmat(path):
        if name == "segimg_t" and len(shape) == 2:
            return int(shape[0]), int(shape[1])
    raise Unusable(Reason.DAMAGED, f"{path} holds no matrix segimg_t")


def _mat_mask(path: Path) -> Mask:
    values = np.asarray(_scipy_io().loadmat(path, variable_names=["segimg_t"])["segimg_t"])
    if values.dtype.kind not in "biuf":
        raise Unusable(Reason.DAMAGED, f"segimg_t of {path} is not a matrix of numbers")
    return values == 0


def _scipy_io() -> Any:
    try:
        import scipy.io
    except ImportError as fault:
        raise RefsegError("masks in .mat files need SciPy; install it with: pip install 'refseg[data]'") from fault
    return scipy.io
