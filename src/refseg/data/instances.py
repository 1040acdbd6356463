"""COCO-format instance files: photographs with their annotated segments."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refseg.data.segmentations import Size, Unusable, encode_segmentation
from refseg.errors import RefsegError
from refseg.masks import Mask
from refseg.photo import read_photo

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """One annotated segment of a photograph."""

    id: int
    label: str
    """Its category's name."""
    mask: Mask
    """(H, W) bool, as displayed; never empty."""
    crowd: bool
    stuff: bool
    """Whether its category is stuff, not a thing: sky, grass, a wall."""


@dataclass(frozen=True, eq=False, slots=True)
class AnnotatedPhoto:
    """One photograph of an instance file, with its annotations."""

    path: Path
    image_id: int | str
    pixels: npt.NDArray[np.uint8]
    """(H, W, 3), as displayed."""
    instances: list[Instance]
    unplaced: frozenset[str]
    """Labels of segments whose masks cannot be used."""


def read_instances(
    instances: Path, images: Path | None = None, only: Container[Any] | None = None
) -> Iterator[AnnotatedPhoto]:
    """The photographs of a COCO-format instance file, in its order.

    `images` is the folder of the photographs, by default `images/` next to the file. `only` has the ids of the
    photographs to read, by default all. Photographs and segments that cannot be used are skipped with a warning.
    Raises RefsegError if the file is not an instance file.
    """
    document = _read(instances)
    folder = images if images is not None else instances.parent / "images"
    categories = {category["id"]: category for category in document["categories"]}
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    records = [record for record in document["images"] if only is None or record["id"] in only]
    skipped = 0
    for record in records:
        path = folder / record["file_name"]
        pixels = _pixels(path)
        if pixels is None:
            skipped += 1
            continue
        found, unplaced = _instances(annotations[record["id"]], categories, pixels.shape[:2], path)
        yield AnnotatedPhoto(path, record["id"], pixels, found, frozenset(unplaced))
    if skipped:
        _log.warning("skipped %d of %d photographs of %s", skipped, len(records), instances)


def _read(instances: Path) -> dict[str, Any]:
    cure = "give a COCO-format file with the keys images, annotations and categories"
    try:
        document = json.loads(instances.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RefsegError(f"{instances} cannot be read ({fault.strerror}); {cure}") from fault
    except ValueError as fault:
        raise RefsegError(f"{instances} is not JSON ({fault}); {cure}") from fault
    required = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id", "segmentation"),
        "categories": ("id", "name"),
    }
    for key, fields in required.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise RefsegError(f"{instances} has no list '{key}'; {cure}")
        for entry in entries:
            missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if missing:
                raise RefsegError(f"{instances} has an entry of '{key}' without '{missing[0]}'; {cure}")
    unknown = {entry["category_id"] for entry in document["annotations"]}
    unknown -= {entry["id"] for entry in document["categories"]}
    if unknown:
        raise RefsegError(f"{instances} uses category {min(unknown)} without naming it; add it to 'categories'")
    return dict(document)


def _pixels(path: Path) -> npt.NDArray[np.uint8] | None:
    """The photograph as displayed, (H, W, 3) uint8. If it cannot be read, None, with a warning."""
    try:
        return np.asarray(read_photo(path))
    except RefsegError as fault:
        _log.warning("skipped the photograph %s: %s", path, fault)
        return None


def _instances(
    annotations: Sequence[dict[str, Any]], categories: dict[Any, dict[str, Any]], size: Size, path: Path
) -> tuple[list[Instance], set[str]]:
    """The segments of one photograph, and the labels of those that cannot be used."""
    found, unplaced = [], set()
    for number, annotation in enumerate(annotations, start=1):
        category = categories[annotation["category_id"]]
        try:
            mask = _mask(annotation["segmentation"], *size)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as fault:
            _log.warning("skipped a segment (%s) of %s: %s", category["name"], path, fault)
            unplaced.add(category["name"])
            continue
        if mask.any():
            identity, crowd = int(annotation.get("id", number)), bool(annotation.get("iscrowd", 0))
            found.append(Instance(identity, category["name"], mask, crowd, category.get("isthing", 1) == 0))
    return found, unplaced


def _mask(segmentation: Any, height: int, width: int) -> Mask:
    """A segment's mask (H, W) from polygons or run lengths. Raises ValueError if it is damaged or of another size."""
    if isinstance(segmentation, dict):
        declared = [int(side) for side in segmentation["size"]]
        if declared != [height, width]:
            raise ValueError(f"it is {declared[1]}×{declared[0]} and the photograph {width}×{height}")
    try:
        rle = encode_segmentation(segmentation, (height, width))
    except Unusable as fault:
        raise ValueError(str(fault)) from fault
    return np.asarray(coco_mask.decode(rle), dtype=bool)
