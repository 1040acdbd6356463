"""From what a copy of a dataset holds to rows: photographs found, masks made, and what cannot be used listed.

Each format has its reader (refer, conversions, referit); all of them end in a `Copy`, and here it becomes rows.
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
    """Expressions left out, and why."""

    reason: Reason
    item: str
    """What they are about, for people: file, segment, sizes."""
    expressions: int = 1


@dataclass(frozen=True, slots=True)
class Referent:
    """One segment of one photograph and what was said of it, as a copy of the dataset has it."""

    photograph: str
    """The photograph's file name."""
    image_id: int | str
    segment_id: int
    expressions: tuple[str, ...]
    segmentation: Any
    """COCO polygons or run lengths, the file of a mask (.png: not black is inside; .mat: `segimg_t` is 0
    inside), or None where the copy has none."""
    split: str
    size: Size | None = None
    """The photograph's size as the copy has it; None where it does not say."""
    label: str = ""
    siblings: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """A photograph's file and its pixel grid as stored."""

    path: Path
    size: Size
    orientation: int
    """EXIF, 1..8: how it has to be turned to be displayed."""

    @property
    def displayed(self) -> Size:
        """The size as displayed."""
        return self.size if self.orientation < 5 else self.size[::-1]


class Photographs:
    """Finds photographs by name in several folders. COCO's renaming of 2017 is followed."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self._frames: dict[str, Frame | Reason] = {}

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """One listing of a folder instead of a question for each of its files."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for name in os.listdir(folder):  # noqa: PTH208 (names alone, 80,000 of them)
                found.setdefault(name, folder / name)
        return found

    def find(self, name: str) -> Path | None:
        """The file of that name, or None."""
        later = _COCO_2014.fullmatch(name)
        return self._paths.get(name) or (self._paths.get(later[1]) if later else None)

    def frame(self, name: str) -> Frame:
        """Raises Unusable if there is no such file or its header cannot be read. Pixels are not decoded."""
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
    """How it is stored, for people."""
    referents: list[Referent]
    photographs: Photographs
    files: tuple[Path, ...] = ()
    """The annotation files that were read."""
    notes: tuple[str, ...] = field(default=())
    """What a user of this form has to know."""

    def of(self, split: str) -> list[Referent]:
        """The referents of one split. Raises RefsegError if the dataset has no such split."""
        self.dataset.check_split(split)
        if split == "trainval" and not any(referent.split == split for referent in self.referents):
            return [referent for referent in self.referents if referent.split in ("train", "val")]
        return [referent for referent in self.referents if referent.split == split]


def make_rows(copy: Copy, split: str) -> tuple[list[Row], list[Skip]]:
    """One row per expression of a split, and what had to be left out.

    Masks are brought to the photograph as displayed: annotations describe the pixels as stored, so where EXIF
    turns a photograph its masks are turned with it. Only the header of a photograph is read.
    """
    rows: list[Row] = []
    skips: list[Skip] = []
    for referent in copy.of(split):
        name = f"{referent.photograph}, segment {referent.segment_id}"
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
                counts=counts, segment_ids=(referent.segment_id,), label=referent.label,
                siblings=referent.siblings, split=f"{copy.dataset.name}:{split}",
            )
            for expression in spoken
        ]  # fmt: skip
    return rows, skips


def _mask(referent: Referent, frame: Frame) -> str:
    """The mask as compressed run lengths at the displayed size. Raises Unusable."""
    segmentation = referent.segmentation
    size = declared_size(segmentation) or referent.size or frame.size
    if size not in (frame.size, frame.displayed):
        raise Unusable(Reason.SIZE, f"{size[1]}×{size[0]} for {frame.size[1]}×{frame.size[0]}")
    rle = encode_segmentation(segmentation, size)
    if not coco_mask.area(rle):
        raise Unusable(Reason.EMPTY, "no pixel is inside")
    if frame.orientation != 1 and size == frame.size:
        return encode_mask(_turned(np.asarray(coco_mask.decode(rle), dtype=bool), frame.orientation))
    counts: bytes = rle["counts"]
    return counts.decode("ascii")


def _turned(mask: Mask, orientation: int) -> Mask:
    """A mask (H, W) of stored pixels, turned as its photograph is for display."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.getexif()[_ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image)) > 0


# ---------------------------------------------------------------- what the readers share


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises RefsegError that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RefsegError(f"{path} cannot be read ({fault.strerror}); check its path and permissions") from fault
    except (ValueError, RecursionError) as fault:
        raise RefsegError(f"{path} is damaged or cut short ({first_line(fault)}); obtain it anew") from fault


def dataset_folders(dataset: Dataset, root: Path) -> list[Path]:
    """The folders under `root` that may hold the dataset, `root` itself among them if it is called so.

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
    """The error for a root without the dataset."""
    return RefsegError(
        f"{root} holds no copy of {dataset.title}: {looked_for}; get it as follows. " + ". ".join(dataset.sources)
    )
