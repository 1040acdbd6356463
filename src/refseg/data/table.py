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
from refseg.photo import MAX_PIXELS


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
    """What the expression relies on: category, colour, position, size, ordinal, relation, stuff, several, typed."""
    siblings: int = 0
    """How many other segments of the photograph carry the referent's label."""
    split: str = ""

    def mask(self) -> npt.NDArray[np.bool_]:
        """The referent's mask, (H, W) bool. Raises RefsegError if it is damaged."""
        try:
            return decode_mask(self.counts, self.height, self.width)
        except (ValueError, TypeError, AttributeError) as fault:
            raise RefsegError(
                f"the mask of {self.expression!r} for {self.image} is damaged: {fault}; "
                "write the table anew with `refseg data expressions`"
            ) from fault


def encode_mask(mask: npt.NDArray[np.bool_]) -> str:
    """Compressed COCO run lengths of a mask (H, W)."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def decode_mask(counts: str, height: int, width: int) -> npt.NDArray[np.bool_]:
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
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(path, number, line))
    except UnicodeDecodeError as fault:
        raise RefsegError(f"{path} is not text ({fault.reason}); give JSON lines in UTF-8") from fault
    if not rows:
        raise RefsegError(f"{path} holds no expressions; write it with `refseg data expressions`")
    return rows


def _row(path: Path, number: int, line: str) -> Row:
    try:
        record: dict[str, Any] = json.loads(line)
        record["image"] = Path(os.path.normpath(path.parent / record["image"]))
        record["segment_ids"] = tuple(record.get("segment_ids", ()))
        return Row(**record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise RefsegError(
            f"{path}, line {number}, is not a row of an expression table ({fault}); "
            "write the table anew with `refseg data expressions`"
        ) from fault


def by_photograph(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of one photograph after another, so that each is decoded and encoded once."""
    for _, group in groupby(sorted(rows, key=lambda row: str(row.image)), key=lambda row: row.image):
        yield list(group)
