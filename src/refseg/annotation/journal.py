"""Finished photographs, kept one by one, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from refseg.annotation.expressions import Plan, distinct
from refseg.errors import RefsegError
from refseg.files import lock

Record = dict[str, Any]
"""A finished photograph: `photo`, its `stamp`, `size` [H, W], and `results`, each a `Segmentation.to_dict`."""

_KIND = "refseg label"
_KEYS = {"photo", "stamp", "size", "results"}


class Journal:
    """A file of JSON lines that only grows: which model answers, then one finished photograph per line.

    Only one process at a time has it open. A line that a kill cut short is dropped. If a photograph is there
    twice, the later line counts.
    """

    def __init__(self, path: Path, made_by: Record) -> None:
        """Opens the file or starts it.

        Raises RefsegError if another process has it open, or if it was started by another `made_by`.
        """
        self.path = path
        self._places: dict[str, tuple[int, list[int]]] = {}
        self._file = path.open("a+b")
        try:
            if not lock(self._file):
                raise RefsegError(f"another run is writing to {path}; wait until it ends, or give another --out")
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
        record = _parsed(self._file.readline())
        if record is None or record.get("photo") != photo:
            raise RefsegError(f"{self.path} was changed by something else; delete it to start again")
        return record

    def add(self, record: Record) -> None:
        """Keeps a finished photograph, which then survives a kill of this process."""
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._places[record["photo"]] = place, record["stamp"]

    def finished(self, plan: Plan, folder: Path) -> set[str]:
        """The photographs of the plan that are here and unchanged in the folder; changed ones are forgotten.

        Raises RefsegError if one was asked for other expressions: finished work is not thrown away unasked.
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
                raise RefsegError(f"{self.path} was started with other expressions of {photo}; {self._cure}")
            finished.add(photo)
        return finished

    @property
    def _cure(self) -> str:
        return "give another --out, or delete that file to start again"

    def _read(self, made_by: Record) -> None:
        self._file.seek(0)
        end = 0
        head: Record | None = None
        for line in self._file:
            record = _parsed(line)
            if head is None:
                if record is None and line.endswith(b"\n"):
                    record = {}  # a whole line, but not of a journal
                head = record
            elif record is not None and record.keys() >= _KEYS and isinstance(record["photo"], str):
                self._places[record["photo"]] = end, record["stamp"]
            if not line.endswith(b"\n"):
                break
            end += len(line)
        if head is not None and head.get("kind") != _KIND:
            raise RefsegError(f"{self.path} is in the way and not a record of finished photographs; give another --out")
        if head is not None and head != {"kind": _KIND, **made_by}:
            raise RefsegError(f"{self.path} was started with another model or threshold; {self._cure}")
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
    """A whole line as an object, or None if it is cut short or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
