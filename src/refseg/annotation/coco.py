"""Answers as a COCO file: compressed run lengths, boxes xywh, and the score and expression of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as coco_mask

from refseg.annotation.expressions import Label, Plan
from refseg.annotation.journal import Journal, Record
from refseg.files import whole


@dataclass(frozen=True)
class Keep:
    """Which answers become annotations; an empty mask never does."""

    min_score: float = 0.0
    found: bool = False
    """Leave out what the model believes is not in the photograph."""

    def __call__(self, result: Record) -> bool:
        absent = self.found and result["found"] is False
        return result["box"] is not None and result["score"] >= self.min_score and not absent


@dataclass
class Counts:
    """What a file holds."""

    photographs: int = 0
    annotations: int = 0
    categories: int = 0


def write_coco(path: Path, plan: Plan, journal: Journal, model: str, keep: Keep | None = None) -> Counts:
    """Writes what the journal holds of the plan; the file appears whole or not at all.

    The same answers make the same bytes, in whatever order they came: photographs are numbered by name, categories
    by their first appearance, annotations in the order of both. Memory grows with the photographs, not their masks.
    """
    keep = keep or Keep()
    done = [photo for photo in plan if photo in journal]
    names = dict.fromkeys(label.category for labels in plan.values() for label in labels)
    categories = {name: number for number, name in enumerate(names, start=1)}
    counts = Counts(len(done), 0, len(categories))
    images: list[Record] = []

    def annotations() -> Iterator[Record]:
        for image_id, photo in enumerate(done, start=1):
            record = journal[photo]
            height, width = record["size"]
            images.append({"id": image_id, "file_name": photo, "width": width, "height": height})
            for annotation in _annotations(record, plan[photo], categories, keep):
                counts.annotations += 1
                yield {"id": counts.annotations, "image_id": image_id, **annotation}

    with whole(path) as unfinished, unfinished.open("w", encoding="ascii") as file:
        info = {"description": f"Labelled by refseg {version('refseg')}, model {model}"}
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": ')
        _write_list(file, ({"id": number, "name": name} for name, number in categories.items()))
        file.write(',\n"annotations": ')
        _write_list(file, annotations())
        file.write(',\n"images": ')
        _write_list(file, images)
        file.write("}\n")
    return counts


def _annotations(record: Record, labels: Iterable[Label], categories: dict[str, int], keep: Keep) -> Iterator[Record]:
    results = {result["expression"]: result for result in record["results"] if keep(result)}
    for label in labels:
        if label.expression in results:
            yield {"category_id": categories[label.category], **_annotation(results[label.expression])}


def _annotation(result: Record) -> dict[str, Any]:
    left, top, right, bottom = result["box"]
    return {
        "segmentation": result["rle"],
        "bbox": [left, top, right - left, bottom - top],
        "area": int(coco_mask.area(result["rle"])),
        "iscrowd": 0,
        "score": result["score"],
        "expression": result["expression"],
    }


def _write_list(file: IO[str], items: Iterable[Record]) -> None:
    file.write("[")
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item))
    file.write("]")
