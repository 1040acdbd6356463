"""From a copy of a dataset to rows: finds photographs, makes masks, and lists what cannot be used.

Each format has its reader (refer, conversions, referit). Every reader returns a `Copy`, which becomes rows here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from refseg.data.expressions.typed import NOTHING
from refseg.data.published.catalogue import Dataset
from refseg.data.segmentations import Reason, Size, Unusable, declared_size, encode_segmentation
from refseg.data.table import Row
from refseg.errors import RefsegError, first_line
from refseg.masks import Mask, encode_mask
from refseg.photo import FORMATS

_ORIENTATION = 0x0112
_COCO_2014 = re.compile(r"COCO_(?:train|val)2014_(\d{12}\.jpg)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Skip:
    """Expressions that were left out, and why."""

    reason: Reason
    item: str
    """What they are about, in words: file, segment, sizes."""
    expressions: int = 1


@dataclass(frozen=True, slots=True)
class Referent:
    """What some expressions mean in one photograph, as a copy of the dataset has it: one segment, several, or none."""

    photograph: str
    """The photograph's file name."""
    image_id: int | str
    segment_ids: tuple[int, ...]
    """The segments whose union is meant. Empty where the expressions mean nothing in the photograph."""
    expressions: tuple[str, ...]
    segmentations: tuple[Any, ...]
    """One for each segment: COCO polygons or run lengths, or the file of a mask, or None if the copy has none.

    Inside a mask's file is what is not black (.png), or where the matrix `segimg_t` is 0 (.mat).
    """
    split: str
    size: Size | None = None
    """The photograph's size as the copy has it. None if it does not say."""
    label: str = ""
    """The category of the segments. Empty if there is none or several."""
    siblings: int = 0
    """How many other segments of the photograph have that label."""

    @property
    def name(self) -> str:
        """Photograph and segments, in words."""
        ids = ", ".join(map(str, self.segment_ids)) or "none"
        return f"{self.photograph}, segment{'s' if len(self.segment_ids) > 1 else ''} {ids}"

    @property
    def kind(self) -> str:
        """The kind of its rows: "several" for a union, "nothing" without a segment, and "" for one segment."""
        return NOTHING if not self.segment_ids else "several" if len(self.segment_ids) > 1 else ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A photograph's file and its pixel grid as stored."""

    path: Path
    size: Size
    orientation: int
    """How it has to be turned to be displayed, as EXIF says it: 1..8, 1 for not at all."""

    @property
    def displayed(self) -> Size:
        """The size as displayed."""
        return self.size if self.orientation < 5 else self.size[::-1]


class Photographs:
    """Finds photographs by name in several folders, also under the names that COCO gave them in 2017."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self._frames: dict[str, Frame | Reason] = {}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The files by name. Each folder is listed once, which is faster than to ask for each file."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for name in os.listdir(folder):  # noqa: PTH208 (80,000 names are enough)
                found.setdefault(name, folder / name)
        return found

    def find(self, name: str) -> Path | None:
        """The file of that name, or None."""
        later = _COCO_2014.fullmatch(name)
        return self._paths.get(name) or (self._paths.get(later[1]) if later else None)

    def frame(self, name: str) -> Frame:
        """The photograph's file and size. Pixels are not decoded.

        Raises Unusable if there is no such file or its header cannot be read.
        """
        if name not in self._frames:
            self._frames[name] = self._open(name)
        frame = self._frames[name]
        if isinstance(frame, Reason):
            raise Unusable(frame)
        return frame

    def _open(self, name: str) -> Frame | Reason:
        path = self.find(name)
        if path is None:
            return Reason.NO_PHOTOGRAPH
        try:
            with Image.open(path, formats=FORMATS) as image:
                return Frame(path, (image.height, image.width), int(image.getexif().get(_ORIENTATION, 1)))
        except Exception:  # a damaged header surfaces as any error of any decoder
            return Reason.UNREADABLE


@dataclass(frozen=True, slots=True)
class Copy:
    """A user's copy of a dataset, read."""

    dataset: Dataset
    form: str
    """How it is stored, in words."""
    referents: list[Referent]
    photographs: Photographs
    files: tuple[Path, ...] = ()
    """The annotation files that were read."""
    notes: tuple[str, ...] = field(default=())
    """What a user of this form has to know, one sentence each."""

    def of(self, split: str) -> list[Referent]:
        """The referents of one split. Raises RefsegError if the dataset has no such split."""
        self.dataset.check_split(split)
        if split == "trainval" and not any(referent.split == split for referent in self.referents):
            return [referent for referent in self.referents if referent.split in ("train", "val")]
        return [referent for referent in self.referents if referent.split == split]


def make_rows(copy: Copy, split: str) -> tuple[list[Row], list[Skip]]:
    """One row per expression of a split, and what had to be left out.

    Masks are those of the photograph as displayed. Annotations describe the pixels as stored, so where EXIF turns a
    photograph, its masks are turned with it. Only the header of a photograph is read. Expressions that mean nothing
    in their photograph become rows of kind "nothing" with an empty mask.
    """
    rows: list[Row] = []
    skips: list[Skip] = []
    for referent in copy.of(split):
        name = referent.name
        spoken = [expression.strip() for expression in referent.expressions if expression.strip()]
        if len(spoken) < len(referent.expressions):
            skips.append(Skip(Reason.NO_WORDS, name, len(referent.expressions) - len(spoken)))
        if not spoken:
            continue
        try:
            frame = copy.photographs.frame(referent.photograph)
            counts = _mask(referent, frame)
        except Unusable as fault:
            skips.append(Skip(fault.reason, f"{name}: {fault}" if str(fault) else name, len(spoken)))
            continue
        height, width = frame.displayed
        rows += [
            Row(
                image=frame.path, image_id=referent.image_id, height=height, width=width, expression=expression,
                counts=counts, segment_ids=referent.segment_ids, label=referent.label, kind=referent.kind,
                siblings=referent.siblings, split=f"{copy.dataset.name}:{split}",
            )
            for expression in spoken
        ]  # fmt: skip
    return rows, skips


def _mask(referent: Referent, frame: Frame) -> str:
    """The union of its segments as compressed run lengths at the displayed size. Raises Unusable."""
    if not referent.segment_ids:
        return encode_mask(np.zeros(frame.displayed, dtype=bool))
    segments = [_segment(segmentation, referent.size or frame.size, frame) for segmentation in referent.segmentations]
    union = coco_mask.merge(segments)
    if not coco_mask.area(union):
        raise Unusable(Reason.EMPTY, "no pixel is inside")
    counts: bytes = union["counts"]
    return counts.decode("ascii")


def _segment(segmentation: Any, size: Size, frame: Frame) -> dict[str, Any]:
    """One segment as compressed run lengths at the displayed size. Raises Unusable.

    `size` is the photograph's, unless the segmentation itself has one.
    """
    size = declared_size(segmentation) or size
    if size not in (frame.size, frame.displayed):
        raise Unusable(Reason.SIZE, f"{size[1]}×{size[0]} for {frame.size[1]}×{frame.size[0]}")
    rle = encode_segmentation(segmentation, size)
    if frame.orientation == 1 or size != frame.size:
        return rle
    turned = _turned(np.asarray(coco_mask.decode(rle), dtype=bool), frame.orientation)
    return {"size": list(turned.shape), "counts": encode_mask(turned).encode("ascii")}


def _turned(mask: Mask, orientation: int) -> Mask:
    """A mask (H, W) of stored pixels, turned as its photograph is turned for display."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.getexif()[_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image)) > 0


# ---------------------------------------------------------------- what the readers share


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises RefsegError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RefsegError(f"{path} cannot be read ({fault.strerror}); check its path and permissions") from fault
    except (ValueError, RecursionError) as fault:
        raise RefsegError(f"{path} is damaged or cut short ({first_line(fault)}); get a new copy") from fault


def dataset_folders(dataset: Dataset, root: Path) -> list[Path]:
    """The folders under `root` that may contain the dataset. `root` itself is one of them if it has such a name.

    Raises RefsegError if `root` is no folder.
    """
    if not root.is_dir():
        raise RefsegError(
            f"there is no folder {root}; name the one that holds your datasets with --root or $REFSEG_DATA"
        )
    found = [root] if root.resolve().name.lower() in dataset.folders else []
    for parent in (".", "data", "refer", "refer/data", "anns", "annotations", "datasets"):
        base = root / parent
        if base.is_dir():
            found += sorted(
                child for child in base.iterdir() if child.name.lower() in dataset.folders and child.is_dir()
            )
    return found


def not_found(dataset: Dataset, root: Path, looked_for: str) -> RefsegError:
    """The error for a root that has no copy of the dataset."""
    return RefsegError(
        f"{root} holds no copy of {dataset.title}: {looked_for}; get it as follows. " + ". ".join(dataset.sources)
    )
