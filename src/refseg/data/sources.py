"""Where rows come from: one string names a table, annotated photographs, a published dataset, or rendered scenes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from refseg.data import rendered
from refseg.data.expressions.generate import generate
from refseg.data.expressions.typed import typed_rows
from refseg.data.published.audit import count, skip_lines
from refseg.data.published.catalogue import DATASETS, Dataset, find_dataset
from refseg.data.published.refer import read_refer
from refseg.data.published.referents import Copy, make_rows
from refseg.data.published.referit import read_referit
from refseg.data.table import Row, read_table
from refseg.errors import RefsegError
from refseg.files import cache_folder

_log = logging.getLogger(__name__)

_ACCEPTED = (
    "give a table NAME.jsonl, COCO-format annotations NAME.json with the photographs in images/ next to it, "
    "NAME.json+SENTENCES.jsonl to add typed sentences, "
    f"DATASET:SPLIT such as unc:val (DATASET is one of {', '.join(DATASETS)}), or scenes:COUNT or scenes:COUNT:SEED"
)


def load_rows(spec: str, *, per_photo: int = 40, seed: int = 0) -> list[Row]:
    """The rows that `spec` names.

    - `NAME.jsonl` is a table and is read as it is.
    - `NAME.json` is an instance file in COCO format, with its photographs in `images/` next to it. At most `per_photo`
      expressions of each photograph are generated with `seed`. Their split is the names of the last two folders, such
      as "photos-coco/val".
    - `NAME.json+SENTENCES.jsonl` adds all sentences that people typed for these photographs (see `typed_rows`), with
      the same split.
    - `scenes:COUNT` and `scenes:COUNT:SEED` are rendered scenes of the split "scenes". SEED is 0 unless given. Scenes
      are rendered once, into `$REFSEG_CACHE` or else the user's cache folder.
    - `unc:val`, `unc+:testA`, `gref-umd:test`, `referit:test`, `grefcoco:val` and so on are published splits, from the
      copy under `$REFSEG_DATA`. What cannot be used is logged.

    Raises RefsegError if `spec` is none of these, if a file is missing, or if there are no expressions.
    """
    name, _, split = spec.partition(":")
    if spec.startswith("scenes:"):
        rows = list(generate(_scenes(spec), seed=seed, per_photo=per_photo, split="scenes"))
    elif Path(spec).suffix not in (".jsonl", ".json") and _is_dataset(name):
        rows = _published(find_dataset(name), split)
    elif ".json+" in spec:
        annotations, _, sentences = spec.partition("+")
        rows = _annotated(_file(annotations), per_photo, seed, _file(sentences))
    else:
        path = _file(spec)
        rows = read_table(path) if path.suffix == ".jsonl" else _annotated(path, per_photo, seed)
    if not rows:
        raise RefsegError(f"{spec} yields no expressions; it needs photographs with annotated segments")
    return rows


def read_dataset(dataset: Dataset, root: Path, unpack: Path | None = None) -> Copy:
    """The copy of a published dataset under `root`. `unpack` is a folder for photographs that are inside a copy.

    Raises RefsegError if there is no copy, half a copy, or a damaged one.
    """
    read = read_referit if dataset.name == "referit" else read_refer
    return read(dataset, root.expanduser(), unpack)


def check_partition(copy: Copy, split: str) -> None:
    """Warns if a split is not as large as the published one. Raises RefsegError if it is larger.

    A split with more referents than were published is of another partition. That partition's test photographs may be
    among this one's training photographs.
    """
    found, published = count(copy.of(split)), copy.dataset.splits[split]
    name = f"{copy.dataset.name}:{split}"
    if published.referents and found.referents > published.referents:
        raise RefsegError(
            f"{copy.form}: {name} has {found.referents:,} referents and the published split {published.referents:,}; "
            "this copy mixes partitions, use another"
        )
    if not published.confirms(found):
        _log.warning(
            "%s has %d expressions and the published split %d; `refseg data verify` says what is missing",
            name, found.expressions, published.expressions,
        )  # fmt: skip


def _is_dataset(name: str) -> bool:
    try:
        find_dataset(name)
    except RefsegError:
        return False
    return True


def _published(dataset: Dataset, split: str) -> list[Row]:
    if not split:
        raise RefsegError(f"{dataset.name} has several splits; write {dataset.name}:{[*dataset.splits][-1]} or another")
    dataset.check_split(split)
    root = os.environ.get("REFSEG_DATA")
    if not root:
        raise RefsegError(f"{dataset.name}:{split} needs to know where your copy is; set REFSEG_DATA to its folder")
    copy = read_dataset(dataset, Path(root), cache_folder() / "photographs")
    check_partition(copy, split)
    rows, skips = make_rows(copy, split)
    lines = skip_lines(skips)
    for line in lines:
        _log.warning("%s:%s: %s", dataset.name, split, line)
    if not rows:
        raise RefsegError(
            f"nothing of {dataset.name}:{split} under {root} can be used ({lines[0] if lines else 'it is empty'}); "
            f"see: refseg data verify {dataset.name} --root {root}"
        )
    return rows


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix not in (".jsonl", ".json"):
        raise RefsegError(f"{name!r} names no data; {_ACCEPTED}")
    if not path.is_file():
        raise RefsegError(f"there is no file {name}; {_ACCEPTED}")
    return path


def _annotated(path: Path, per_photo: int, seed: int, sentences: Path | None = None) -> list[Row]:
    """Generated rows of an instance file, followed by the rows of the typed sentences, if there are any."""
    images = path.parent / "images"
    if not images.is_dir():
        raise RefsegError(f"{path} has no folder images/ next to it; put the photographs there")
    split = "/".join(path.resolve().parent.parts[-2:])
    rows = list(generate(path, images, seed=seed, per_photo=per_photo, split=split))
    return rows if sentences is None else rows + list(typed_rows(path, sentences, images, split=split))


def _scenes(spec: str) -> Path:
    numbers = spec.split(":")[1:]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers) or int(numbers[0]) == 0:
        raise RefsegError(f"{spec!r} is not scenes:COUNT or scenes:COUNT:SEED; write for example scenes:2000:1")
    count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
    folder = cache_folder() / f"scenes-v{rendered.VERSION}-{count}-{seed}"
    instances = folder / "instances.json"
    if not instances.is_file():
        try:
            rendered.render(folder, count, seed)
        except RefsegError:
            # Another process may have finished the same folder first. Its scenes are the same.
            if not instances.is_file():
                raise
    return instances
