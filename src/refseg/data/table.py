"""The expression table: one row per expression, the common currency of training and evaluation."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refseg.errors import RefsegError


@dataclass(frozen=True, slots=True)
class Row:
    """One expression and the mask it means."""

    image: Path
    """The photograph's file."""
    image_id: int | str
    height: int
    width: int
    expression: str
    counts: str
    """The referent's mask as compressed COCO run lengths, H×W as displayed."""
    segment_ids: tuple[int, ...] = ()
    """Annotations whose union is the mask; more than one for expressions such as "both shoes"."""
    label: str = ""
    """The referent's category as the annotation names it; empty where there is none."""
    kind: str = ""
    """What the expression relies on: category, colour, position, size, ordinal, relation, stuff, several."""
    siblings: int = 0
    """How many other segments of the photograph carry the referent's label."""
    split: str = ""

    def mask(self) -> npt.NDArray[np.bool_]:
        """The referent's mask, (H, W) bool."""
        rle = {"size": [self.height, self.width], "counts": self.counts}
        return np.asarray(coco_mask.decode(rle), dtype=bool)


def encode_mask(mask: npt.NDArray[np.bool_]) -> str:
    """Compressed COCO run lengths of a mask (H, W)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def write_table(path: Path, rows: Iterable[Row]) -> int:
    """Writes JSON lines, photographs as paths relative to the table; returns the number of rows.

    The file appears whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    count = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            record = dataclasses.asdict(row)
            record["image"] = os.path.relpath(row.image, path.parent)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    unfinished.replace(path)
    return count


def read_table(path: Path) -> list[Row]:
    """Reads what `write_table` wrote. Raises RefsegError that names the file and line at fault."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_row(path, number, line))
    if not rows:
        raise RefsegError(f"{path} holds no expressions; write it with `refseg data expressions`")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    try:
        record: dict[str, Any] = json.loads(line)
        record["image"] = Path(os.path.normpath(path.parent / record["image"]))
        record["segment_ids"] = tuple(record.get("segment_ids", ()))
        return Row(**record)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise RefsegError(
            f"{path}, line {number}, is not a row of an expression table ({fault}); "
            "write the table anew with `refseg data expressions`"
        ) from fault


def by_photograph(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of one photograph after another, so that each is decoded and encoded once."""
    for _, group in groupby(sorted(rows, key=lambda row: str(row.image)), key=lambda row: row.image):
        yield list(group)
