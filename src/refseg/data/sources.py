"""Where rows come from: one string names a table, annotated photographs, or rendered scenes."""

from __future__ import annotations

import os
from pathlib import Path

from refseg.data import scenes
from refseg.data.table import Row, read_table
from refseg.data.templates import generate
from refseg.errors import RefsegError

_ACCEPTED = (
    "give a table NAME.jsonl, COCO-format annotations NAME.json with the photographs in images/ beside it, "
    "or scenes:COUNT or scenes:COUNT:SEED"
)


def load_rows(spec: str, *, per_photo: int = 40, seed: int = 0) -> list[Row]:
    """The rows that `spec` names.

    `NAME.jsonl` is read as it stands. For `NAME.json` (COCO format, photographs in `images/` beside it) and
    for `scenes:COUNT[:SEED]` at most `per_photo` expressions of each photograph are generated with `seed`;
    their split is the last two folders' names ("photos-coco/val") or "scenes". Scenes are rendered once into
    `$REFSEG_CACHE` or, where that is not set, the user's cache folder; SEED is 0 unless given.
    Raises RefsegError if `spec` is none of these, a file is missing, or no expression results.
    """
    if spec.startswith("scenes:"):
        rows = list(generate(_scenes(spec), seed=seed, per_photo=per_photo, split="scenes"))
    else:
        path = Path(spec).expanduser()
        if path.suffix not in (".jsonl", ".json"):
            raise RefsegError(f"{spec!r} names no data; {_ACCEPTED}")
        if not path.is_file():
            raise RefsegError(f"there is no file {spec}; {_ACCEPTED}")
        rows = read_table(path) if path.suffix == ".jsonl" else _generated(path, per_photo, seed)
    if not rows:
        raise RefsegError(f"{spec} yields no expressions; it needs photographs with annotated segments")
    return rows


def _generated(path: Path, per_photo: int, seed: int) -> list[Row]:
    images = path.parent / "images"
    if not images.is_dir():
        raise RefsegError(f"{path} has no folder images/ beside it; put the photographs there")
    split = "/".join(path.resolve().parent.parts[-2:])
    return list(generate(path, images, seed=seed, per_photo=per_photo, split=split))


def _scenes(spec: str) -> Path:
    numbers = spec.split(":")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers) or int(numbers[0]) == 0:
        raise RefsegError(f"{spec!r} is not scenes:COUNT or scenes:COUNT:SEED; write for example scenes:2000:1")
    count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
    folder = _cache() / f"scenes-v{scenes.VERSION}-{count}-{seed}"
    instances = folder / "instances.json"
    if not instances.is_file():
        try:
            scenes.render(folder, count, seed)
        except RefsegError:
            # Another process may have finished the same folder first; then its scenes are as good.
            if not instances.is_file():
                raise
    return instances


def _cache() -> Path:
    if chosen := os.environ.get("REFSEG_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "refseg"
