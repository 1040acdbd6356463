"""Where results are written, and under which names."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from refseg.errors import RefsegError

_STEM_BYTES, _SLUG_BYTES = (
    120,
    80,
)  # with separators, a number and a suffix within the 255 bytes of a file's name


def ensure_writable(folder: Path) -> None:
    """Makes the folder and tries it out, so that a long run does not fail at its end. Raises RefsegError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise RefsegError(f"cannot write to {folder} ({fault.strerror}); name another folder with --out") from fault


def slug(text: str) -> str:
    """A sentence as part of a file's name: its letters and digits, the rest as hyphens."""
    return _cut(re.sub(r"[\W_]+", "-", text.lower()).strip("-"), _SLUG_BYTES) or "expression"


class Names:
    """Hands out file names, none twice and none of a photograph's."""

    def __init__(self, folder: Path, photos: Iterable[Path]) -> None:
        self._folder = folder
        self._taken = {_key(photo) for photo in photos}

    def path(self, photo: Path, expression: str, suffix: str) -> Path:
        """FOLDER/street--the-red-bag.jpg, or with -2, -3, … before the suffix where that is taken."""
        name = f"{_cut(photo.stem, _STEM_BYTES)}--{slug(expression)}"
        path = self._folder / f"{name}{suffix}"
        number = 1
        while _key(path) in self._taken:
            number += 1
            path = self._folder / f"{name}-{number}{suffix}"
        self._taken.add(_key(path))
        return path


def _key(path: Path) -> str:
    return str(path.resolve()).casefold()  # some file systems ignore case


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of a text, never half a letter; bytes that are no text stay what they are."""
    if len(text.encode(errors="surrogateescape")) <= size:
        return text
    return text.encode(errors="surrogateescape")[:size].decode(errors="ignore").rstrip("-")
