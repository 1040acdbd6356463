"""UNC, UNC+, G-Ref and gRefCOCO from the published files.

Expressions are in refs(unc).p, refs(google).p, refs(umd).p or grefs(unc).json, masks in instances.json next to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from refseg.data.published.catalogue import Dataset
from refseg.data.published.conversions import read_cris, read_hub
from refseg.data.published.pickles import read_plain_pickle
from refseg.data.published.referents import Copy, Photographs, Referent, dataset_folders, not_found, read_json
from refseg.errors import RefsegError

_PARENTS = (".", "images", "images/mscoco", "images/mscoco/images", "coco", "coco/images", "mscoco", "mscoco/images")
_LEAVES = ("train2014", "train2017", "val2017")


def read_refer(dataset: Dataset, root: Path, unpack: Path | None = None) -> Copy:
    """The copy of the dataset under `root`, in any form.

    The published files come first, then the same references as JSON or as a pickle, then the conversion of CRIS
    (anns/ and masks/), then those of the hub. `unpack` is a folder for photographs that are inside a conversion.
    Without it they stay there. Raises RefsegError if there is no copy, half a copy, or a damaged one.
    """
    folders = dataset_folders(dataset, root)
    photographs = _photographs(root, folders)
    for folder in folders:
        for name in dataset.reference_files:
            if (folder / name).is_file():
                return _published(dataset, folder / name, photographs)
    for folder in folders:
        copy = read_cris(dataset, folder, photographs)
        if copy is not None:
            return copy
    copy = read_hub(dataset, [*folders, *_benchmark(root)], photographs, unpack)
    if copy is not None:
        return copy
    raise not_found(dataset, root, _what_is_there(dataset, root, folders))


def _photographs(root: Path, folders: list[Path]) -> Photographs:
    bases = [root, root.parent] if root in folders else [root]
    return Photographs(base / parent / leaf for base, parent, leaf in product(bases, _PARENTS, _LEAVES))


def _benchmark(root: Path) -> list[Path]:
    return [child for child in sorted(root.iterdir()) if child.name.lower() == "refcoco-benchmark" and child.is_dir()]


def _what_is_there(dataset: Dataset, root: Path, folders: list[Path]) -> str:
    wanted = dataset.reference_files[0]
    if not folders:
        return f"no folder {dataset.folders[0]}/ with {wanted} and instances.json"
    others = sorted(path.name for folder in folders for path in folder.glob(dataset.references.format(partition="*")))
    there = f"{', '.join(others)} but no {wanted}" if others else f"no {wanted} and no conversion that is known"
    return f"{folders[0]} has {there}"


def _published(dataset: Dataset, file: Path, photographs: Photographs) -> Copy:
    instances = file.with_name("instances.json")
    if not instances.is_file():
        raise RefsegError(f"{file.parent} is half a copy: {file.name} is there and instances.json is not; copy it too")
    refs = read_plain_pickle(file) if file.suffix == ".p" else read_json(file)
    referents = list(_referents(refs, file, _Instances(instances), dataset))
    return Copy(dataset, f"{file.name} and instances.json", referents, photographs, (file, instances))


class _Instances:
    """The annotations, photographs and categories of instances.json, by id."""

    def __init__(self, path: Path) -> None:
        document = read_json(path)
        try:
            self.annotations = {entry["id"]: entry for entry in document["annotations"]}
            self.images = {entry["id"]: entry for entry in document["images"]}
            self.labels = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
            self._of_label = Counter((a["image_id"], a["category_id"]) for a in document["annotations"])
        except (KeyError, TypeError) as fault:
            raise RefsegError(f"{path} is not in COCO's format ({fault}); get a new copy") from fault

    def label(self, annotations: list[dict[str, Any]]) -> tuple[str, int]:
        """The label of segments of one photograph, and how many others have it. "" and 0 if they share no label."""
        found = {(annotation["image_id"], annotation["category_id"]) for annotation in annotations}
        if len(found) != 1:
            return "", 0
        image_id, category_id = found.pop()
        return self.labels.get(category_id, ""), self._of_label[image_id, category_id] - len(annotations)


def _referents(refs: Any, file: Path, instances: _Instances, dataset: Dataset) -> Iterator[Referent]:
    if not isinstance(refs, list) or not refs:
        raise RefsegError(f"{file} holds no list of references; get a new copy")
    for number, ref in enumerate(refs):
        try:
            split, image_id, ids = str(ref["split"]), int(ref["image_id"]), _segment_ids(ref)
            expressions = tuple(str(sentence["sent"]) for sentence in ref["sentences"])
            annotations = {identity: instances.annotations.get(identity, {}) for identity in ids}
            # The publisher leaves crowds out of a union.
            alone = {identity: entry for identity, entry in annotations.items() if not entry.get("iscrowd")}
            segments = alone or annotations
            label, siblings = instances.label(list(filter(None, segments.values())))
            image = instances.images.get(image_id, {})
            name = image.get("file_name") or _photograph_of(str(ref["file_name"]))
            size = (int(image["height"]), int(image["width"])) if image else None
        except (KeyError, TypeError, ValueError, AttributeError) as fault:
            raise RefsegError(f"{file}, reference {number}, is not as published ({fault!r}); get a new copy") from fault
        if split not in dataset.splits:
            raise RefsegError(f"{file} has the split {split!r}, which is none of {dataset.title}; get a new copy")
        yield Referent(
            photograph=Path(name).name, image_id=image_id, segment_ids=tuple(segments), expressions=expressions,
            segmentations=tuple(entry.get("segmentation") for entry in segments.values()), split=split, size=size,
            label=label, siblings=siblings,
        )  # fmt: skip


def _segment_ids(ref: dict[str, Any]) -> list[int]:
    """The annotations that a reference means; gRefCOCO writes [-1] for none. Raises ValueError if it is unclear."""
    listed = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    ids = [*dict.fromkeys(map(int, listed))]
    nothing = ids == [-1]
    if not ids or bool(ref.get("no_target", nothing)) != nothing:
        raise ValueError(f"ann_id {ref['ann_id']} and no_target {ref.get('no_target')}")
    return [] if nothing else ids


def _photograph_of(name: str) -> str:
    """COCO_train2014_000000000103.jpg for a name that may have the annotation's id as a fourth part."""
    return "_".join(Path(name).stem.split("_")[:3]) + ".jpg"
