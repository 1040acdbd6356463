"""Conversions of UNC, UNC+ and G-Ref by others: JSON with PNG masks, and the hub's parquet and JSON files.

The hub's conversions are known by their columns:

- `jxu124/refcoco`, `refcocoplus`, `refcocog`: one row a referent, with `raw_anns` and `raw_image_info` as JSON text.
- `jxu124/refcoco-benchmark`: one row a photograph, with its referents in `ref_list` and the photograph itself.
- `lmms-lab/RefCOCO`, `RefCOCOplus`, `RefCOCOg`: one row a referent, with expressions in `answer` and one flat polygon.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from refseg.data.published.catalogue import Dataset
from refseg.data.published.referents import Copy, Photographs, Referent, read_json
from refseg.errors import RefsegError, first_line
from refseg.files import whole

Record = dict[str, Any]

_SPLIT_NAMES = {"validation": "val", "test": "testA"}
"""The hub's names for splits, if the dataset itself has no split of that name."""

_COCO_NAME = re.compile(r"(COCO_train2014_(\d{12}))(?:_(\d+))?\.jpg", re.ASCII)
"""The photograph, its id, and the annotation's id."""

_ONE_POLYGON = (
    "this conversion keeps one flat polygon of each mask: a segment of several parts may have lost some, so no number "
    "from it compares with a published one"
)


# ---------------------------------------------------------------- anns/refcoco/val.json and masks/refcoco/7.png


def read_cris(dataset: Dataset, folder: Path, photographs: Photographs) -> Copy | None:
    """The conversion that CRIS and its successors train on, or None if `folder` has none."""
    masks = folder.parent.parent / "masks" / folder.name
    files = [folder / f"{split}.json" for split in dataset.splits if (folder / f"{split}.json").is_file()]
    if folder.parent.name != "anns" or not files:
        return None
    if not masks.is_dir():
        raise RefsegError(f"{folder} is half a copy: the masks are missing; copy {masks} too")
    referents = [referent for file in files for referent in _cris_referents(file, masks)]
    photographs = Photographs([*photographs.folders, masks.parents[1] / "images" / "train2014"])
    return Copy(dataset, "anns/ and masks/", referents, photographs, tuple(files))


def _cris_referents(file: Path, masks: Path) -> Iterator[Referent]:
    entries = read_json(file)
    if not isinstance(entries, list):
        raise RefsegError(f"{file} holds no list of referents; convert the dataset again")
    for number, entry in enumerate(entries):
        try:
            sentences = entry["sentences"] if "sentences" in entry else entry["sents"]
            name, segment_id = Path(entry["img_name"]).name, int(entry["segment_id"])
            yield Referent(
                photograph=name, image_id=_image_id(name), segment_ids=(segment_id,),
                expressions=tuple(str(s["sent"] if isinstance(s, dict) else s) for s in sentences),
                segmentations=(masks / f"{segment_id}.png",), split=file.stem,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as fault:
            raise RefsegError(f"{file}, entry {number}, is not a referent ({fault!r}); convert it again") from fault


# ---------------------------------------------------------------- the hub


def read_hub(dataset: Dataset, folders: Iterable[Path], photographs: Photographs, unpack: Path | None) -> Copy | None:
    """A conversion of the hub, or None if the folders have none. Embedded photographs go to `unpack`."""
    for folder in folders:
        files = _hub_files(dataset, folder)
        if files:
            break
    else:
        return None
    referents: list[Referent] = []
    notes: set[str] = set()
    named = {split for _, split in files if split in dataset.splits}
    for file, split in files:
        known = split if split in dataset.splits else _SPLIT_NAMES.get(split, "")
        if known not in dataset.splits or (known != split and known in named):
            notes.add(f"{file.name} is of no split of {dataset.title} and was passed over")
            continue
        for number, row in enumerate(_hub_rows(file, with_photographs=unpack is not None)):
            try:
                found = list(_hub_referents(row, known, dataset))
            except (KeyError, TypeError, ValueError, AttributeError) as fault:
                raise RefsegError(
                    f"{file}, row {number}, is of no conversion that is known ({fault!r}); docs/datasets.md lists them"
                ) from fault
            if "answer" in row:
                notes.add(_ONE_POLYGON)
            if unpack is not None and found:
                _unpack(row.get("image"), unpack / found[0].photograph, photographs)
            referents += found
    if unpack is not None and unpack.is_dir():
        photographs = Photographs([*photographs.folders, unpack])
    files_read = tuple(file for file, _ in files)
    return Copy(
        dataset, "a conversion of the hub", _with_siblings(referents), photographs, files_read, (*sorted(notes),)
    )


def _hub_files(dataset: Dataset, folder: Path) -> list[tuple[Path, str]]:
    """The files of the dataset, and the split that each is named after, as in val-00000-of-00004.parquet."""
    prefix = dataset.benchmark if folder.name.lower() == "refcoco-benchmark" else ""
    found = []
    for place in (folder, folder / "data"):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            split = re.split(r"[-.]", file.name.removeprefix(prefix))[0]
            if file.suffix not in (".parquet", ".jsonl", ".json") or not file.name.startswith(prefix):
                continue
            if split in dataset.splits or split in _SPLIT_NAMES:
                found.append((file, split))
    return found


def _hub_rows(file: Path, with_photographs: bool) -> Iterator[Record]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, with_photographs)
        return
    try:
        if file.suffix == ".json":
            content = read_json(file)
            yield from content if isinstance(content, list) else [content]
        else:
            with file.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.strip())
    except (ValueError, RecursionError) as fault:
        raise RefsegError(f"{file} is damaged or cut short ({fault}); get a new copy") from fault


def _parquet_rows(file: Path, with_photographs: bool) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as fault:
        raise RefsegError(f"{file} needs PyArrow to be read; install it with: pip install 'refseg[data]'") from fault
    try:
        with parquet.ParquetFile(file) as opened:
            columns = [name for name in opened.schema_arrow.names if with_photographs or name != "image"]
            for batch in opened.iter_batches(batch_size=64, columns=columns):  # a row may embed a photograph
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as fault:
        raise RefsegError(f"{file} is damaged or cut short ({first_line(fault)}); get a new copy") from fault


def _hub_referents(row: Record, split: str, dataset: Dataset) -> Iterator[Referent]:
    if "ref_list" in row:
        for pair in row["ref_list"]:
            yield _referent(pair["ref_info"], pair["ann_info"], row["image_info"], split)
    elif "raw_anns" in row:
        recorded = str(row.get("split") or "")
        annotation, image = json.loads(row["raw_anns"]), json.loads(row["raw_image_info"])
        yield _referent(row, annotation, image, recorded if recorded in dataset.splits else split)
    else:
        named = _COCO_NAME.fullmatch(Path(row["file_name"]).name)
        if named is None:
            raise ValueError(f"the file name {row['file_name']}")
        yield Referent(
            photograph=f"{named[1]}.jpg", image_id=int(named[2]), segment_ids=(int(named[3] or 0),),
            expressions=tuple(map(str, row["answer"])), segmentations=([list(row["segmentation"])],), split=split,
        )  # fmt: skip


def _referent(ref: Record, annotation: Record, image: Record, split: str) -> Referent:
    return Referent(
        photograph=Path(image["file_name"]).name, image_id=int(image["id"]), segment_ids=(int(ref["ann_id"]),),
        expressions=tuple(str(sentence["sent"]) for sentence in ref["sentences"]),
        segmentations=(annotation["segmentation"],), split=split,
        size=(int(image["height"]), int(image["width"])), label=str(annotation["category_id"]),
    )  # fmt: skip


def _with_siblings(referents: list[Referent]) -> list[Referent]:
    """Counts siblings among the referents. The conversions have no other segments and no names of categories."""
    of_label = Counter(
        (image, label) for image, label, _ in {(r.image_id, r.label, r.segment_ids) for r in referents} if label
    )
    return [
        replace(referent, label="", siblings=max(of_label[referent.image_id, referent.label] - 1, 0))
        for referent in referents
    ]


def _unpack(embedded: Any, path: Path, photographs: Photographs) -> None:
    """Writes an embedded photograph, unless it is already there."""
    content = embedded.get("bytes") if isinstance(embedded, dict) else None
    if content and not path.exists() and photographs.find(path.name) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished:
            unfinished.write_bytes(content)


def _image_id(name: str) -> int | str:
    digits = re.search(r"(\d+)\.\w+$", name)
    return int(digits[1]) if digits else name
