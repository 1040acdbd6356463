"""ReferIt (RefCLEF) from the published query files and masks.

A segment is named IMAGE_NUMBER, as in 38685_1. Its expressions are in referit_query_test.json, its mask is
mask/38685_1.mat (or .png), and its photograph is images/38685.jpg.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from refseg.data.published.catalogue import Dataset
from refseg.data.published.referents import Copy, Photographs, Referent, dataset_folders, not_found, read_json
from refseg.errors import RefsegError

_QUERIES = (".", "data", "splits/referit", "splits", "annotations")
_MASKS = ("mask", "masks", "referit-dataset/mask", "mask/referit")
_IMAGES = ("images", "referit-dataset/images", "images/saiapr_tc-12", "saiapr_tc-12")
_NAME = re.compile(r"(\d+)_(\d+)(?:\.png)?", re.ASCII)  # older query files name the crop's picture


def read_referit(dataset: Dataset, root: Path, unpack: Path | None = None) -> Copy:
    """The copy of ReferIt under `root`. Raises RefsegError if there is none, half a copy, or a damaged one.

    If referit_query_trainval.json is missing, trainval is train and val together.
    """
    folders = [*dataset_folders(dataset, root), root]
    files = {
        split: path
        for split in dataset.splits
        if (path := _first(folders, _QUERIES, f"referit_query_{split}.json")) is not None
    }
    if not files:
        raise not_found(dataset, root, _what_is_there(folders))
    masks = _first(folders, _MASKS)
    if masks is None:
        raise RefsegError(
            f"{folders[0]} is half a copy: the query files are there and the folder mask/ is not; {dataset.sources[0]}"
        )
    referents = [referent for split, file in files.items() for referent in _referents(file, masks, split)]
    photographs = Photographs(folder / place for folder, place in product(folders, _IMAGES))
    return Copy(dataset, "query files and masks", referents, photographs, tuple(files.values()))


def _first(folders: list[Path], places: tuple[str, ...], name: str = ".") -> Path | None:
    candidates = (folder / place / name for folder, place in product(folders, places))
    return next((path for path in candidates if path.exists()), None)


def _what_is_there(folders: list[Path]) -> str:
    if any((folder / f"refs({split}).p").is_file() for folder, split in product(folders, ("unc", "berkeley"))):
        return "refs(…).p of RefCLEF is another cut than the paper's, which is referit_query_train.json and the like"
    return "no referit_query_train.json or the like in referit/ or referit/data/"


def _referents(file: Path, masks: Path, split: str) -> Iterator[Referent]:
    queries = read_json(file)
    if not isinstance(queries, dict) or not queries:
        raise RefsegError(f"{file} does not map segments to expressions; get a new copy")
    present = {path.name for path in masks.iterdir()}
    for name, expressions in queries.items():
        parts = _NAME.fullmatch(name)
        if parts is None or not isinstance(expressions, list):
            raise RefsegError(f"{file}: {name!r} is no segment with a list of expressions; get a new copy")
        stem = f"{parts[1]}_{parts[2]}"
        suffix = ".png" if f"{stem}.png" in present and f"{stem}.mat" not in present else ".mat"
        yield Referent(
            photograph=f"{parts[1]}.jpg", image_id=int(parts[1]), segment_ids=(int(parts[2]),),
            expressions=tuple(map(str, expressions)), segmentations=(masks / f"{stem}{suffix}",), split=split,
        )  # fmt: skip
