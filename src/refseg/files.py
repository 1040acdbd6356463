"""What is written appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write the file or the folder that is to stand at `path`; it does when the block ends without a fault.

    Until then it lies beside it under a name of its own, so that several processes may write the same. A file replaces
    what was there; a folder only replaces an empty one. Raises OSError where neither can be.
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
