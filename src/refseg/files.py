"""Files that appear whole or not at all, or that only one process writes; a folder for what can be made again."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or folder that appears at `path` when the block ends without a fault.

    Until then it has a name of its own next to `path`, so that several processes may write the same path.
    A file replaces what was there. A folder replaces only an empty folder. Raises OSError where that fails.
    """
    unfinished = path.with_name(f".{uuid4().hex}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def lock(file: IO[bytes]) -> bool:
    """Takes the lock of an open file; False if it is taken already. Closing the file or a crash gives it back."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def cache_folder() -> Path:
    """Where what can be made again is kept: `$REFSEG_CACHE` or the user's cache folder."""
    if chosen := os.environ.get("REFSEG_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "refseg"
