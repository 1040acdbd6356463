"""The expression table, with one row per expression. Training and evaluation both read it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from refseg.errors import RefsegError
from refseg.files import whole
from refseg.masks import Mask, decode_mask


@dataclass(frozen=True, slots=True)
class Row:
    """One expression and its referent's mask."""

    image: Path
    """The photograph's file."""
    image_id: int | str
    height: int
    width: int
    expression: str
    counts: str
    """The referent's mask as compressed COCO run lengths, H×W as displayed."""
    segment_ids: tuple[int, ...] = ()
    """The ids of the annotations whose union is the mask. Several for expressions such as "both shoes"."""
    label: str = ""
    """The referent's category, as the annotation names it. Empty if there is none."""
    kind: str = ""
    """What the expression relies on: category, colour, position, size, ordinal, relation, stuff, several, …

    "typed" for one that a person typed, "nothing" for one that means nothing in its photograph.
    """
    siblings: int = 0
    """How many other segments of the photograph have the referent's label."""
    split: str = ""
    heads: tuple[int, ...] = ()
    """The dependency tree of the expression: the place of each word's head, the root's own; empty where unknown.

    Places count the words of `parses.all_words`. `refseg data parse` fills it in.
    """

    def mask(self) -> Mask:
        """The referent's mask, (H, W) bool. Raises RefsegError if it is damaged."""
        try:
            return decode_mask(self.counts, self.height, self.width)
        except (ValueError, TypeError, AttributeError) as fault:
            raise RefsegError(
                f"the mask of {self.expression!r} for {self.image} is damaged: {fault}; "
                "write the table again with `refseg data expressions`"
            ) from fault


def write_table(path: Path, rows: Iterable[Row]) -> int:
    """Writes JSON lines and returns the number of rows. Photographs are paths relative to the table.

    The file appears whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            record = dataclasses.asdict(row)
            record["image"] = os.path.relpath(row.image, path.parent)
            if not row.heads:
                del record["heads"]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
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
        record["heads"] = tuple(record.get("heads", ()))
        return Row(**record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise RefsegError(
            f"{path}, line {number}, is not a row of an expression table ({fault}); "
            "write the table again with `refseg data expressions`"
        ) from fault


def by_photograph(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows, grouped by photograph, so that each photograph is decoded and encoded once."""
    for _, group in groupby(sorted(rows, key=lambda row: str(row.image)), key=lambda row: row.image):
        yield list(group)
