"""Finished photographs, kept as they come: an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from refseg.annotation.expressions import Plan, distinct
from refseg.errors import RefsegError

Record = dict[str, Any]
"""A finished photograph: `photo`, its `stamp`, `size` [H, W], and `results`, each a `Segmentation.to_dict`."""

_KIND = "refseg label"


class Journal:
    """A file of JSON lines that only grows: who answers, then one finished photograph a line.

    A line that a kill cut short is dropped. Where a photograph stands twice, the later line counts.
    """

    def __init__(self, path: Path, made_by: Record) -> None:
        """Opens the file, or begins it. Raises RefsegError if it was begun by another `made_by`."""
        self.path = path
        self._places: dict[str, tuple[int, list[int]]] = {}
        self._file = path.open("a+b")
        try:
            self._read(made_by)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, photo: str) -> bool:
        return photo in self._places

    def __getitem__(self, photo: str) -> Record:
        self._file.seek(self._places[photo][0])
        record: Record = json.loads(self._file.readline())
        return record

    def add(self, record: Record) -> None:
        """Keeps a finished photograph: it survives the end of this process, however that comes."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._places[record["photo"]] = place, record["stamp"]

    def finished(self, plan: Plan, folder: Path) -> set[str]:
        """The photographs of the plan that stand here as they are now in the folder; what has changed is forgotten.

        Raises RefsegError if one was asked for other expressions: what it cost is not thrown away unasked.
        """
        finished = set()
        for photo, labels in plan.items():
            if photo not in self._places:
                continue
            if self._places[photo][1] != stamp(folder / photo):
                del self._places[photo]
                continue
            asked = [result["expression"] for result in self[photo]["results"]]
            if asked != distinct(labels):
                raise RefsegError(f"{self.path} was begun with other expressions of {photo}; {self._cure}")
            finished.add(photo)
        return finished

    @property
    def _cure(self) -> str:
        return "give another --out, or delete that file to begin anew"

    def _read(self, made_by: Record) -> None:
        self._file.seek(0)
        end = 0
        head: Record | None = None
        for line in self._file:
            record = _parsed(line)
            if head is None:
                if record is None and line.endswith(b"\n"):
                    record = {}  # a whole line, but none of a journal
                head = record
            elif record is not None and "photo" in record:
                self._places[record["photo"]] = end, record["stamp"]
            if not line.endswith(b"\n"):
                break
            end += len(line)
        if head is not None and head.get("kind") != _KIND:
            raise RefsegError(f"{self.path} is in the way and no record of finished photographs; give another --out")
        if head is not None and head != {"kind": _KIND, **made_by}:
            raise RefsegError(f"{self.path} was begun with another model or threshold; {self._cure}")
        self._file.truncate(end)
        if not end:
            self._file.write(json.dumps({"kind": _KIND, **made_by}).encode() + b"\n")
            self._file.flush()


def stamp(path: Path) -> list[int]:
    """What changes when a file does: its size in bytes and the time of its last change; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _parsed(line: bytes) -> Record | None:
    """A whole line as an object; None if it is cut short or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
