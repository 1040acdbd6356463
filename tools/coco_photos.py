"""Makes the folder of photographs that a file in sentences/ is about, from a copy of COCO 2017.

    python tools/coco_photos.py sentences/photos-coco-things-train.jsonl \
        --annotations coco/annotations/instances_train2017.json --photographs coco/train2017 \
        --out data/photos-coco-things/train

Writes OUT/instances.json with all of COCO's segments of these photographs, and copies the photographs into OUT/images.
Segments get the ids by which the sentences name them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from refseg.errors import RefsegError
from refseg.files import whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path, help="a file of sentences/ whose lines have coco_ids")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO's instances_train2017.json")
    parser.add_argument("--photographs", type=Path, required=True, help="COCO's folder train2017")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    options = parser.parse_args()
    try:
        print(make_photos(options.sentences, options.annotations, options.photographs, options.out))
    except RefsegError as fault:
        parser.exit(2, f"coco_photos: {fault}\n")


def make_photos(sentences: Path, annotations: Path, photographs: Path, out: Path) -> Path:
    """Writes the folder and returns its instances.json. Raises RefsegError where COCO lacks what the sentences name."""
    lines = [json.loads(line) for line in sentences.read_text(encoding="utf-8").splitlines()]
    if not all("coco_ids" in line for line in lines):
        raise RefsegError(f"{sentences} has no coco_ids; give one of sentences/photos-coco-things-*.jsonl")
    photos = {line["image_id"] for line in lines}
    ids = {coco: own for line in lines for coco, own in zip(line["coco_ids"], line["annotations"], strict=True)}
    document = json.loads(annotations.read_text(encoding="utf-8"))
    segments = [segment for segment in document["annotations"] if segment["image_id"] in photos]
    images = [image for image in document["images"] if image["id"] in photos]
    missing = (ids.keys() - {segment["id"] for segment in segments}) or (photos - {image["id"] for image in images})
    if missing:
        raise RefsegError(
            f"{annotations} lacks {min(missing)}, which the sentences name; give instances_train2017.json"
        )
    unnamed = count(max(ids.values(), default=0) + 1)
    if out.exists():
        raise RefsegError(f"{out} exists; name a new folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as folder:
        (folder / "images").mkdir(parents=True)
        for image in images:
            _copy(photographs / image["file_name"], folder / "images")
        renumbered: list[dict[str, Any]] = [
            segment | {"id": ids[segment["id"]] if segment["id"] in ids else next(unnamed), "coco_id": segment["id"]}
            for segment in segments
        ]
        subset = {"images": images, "annotations": renumbered, "categories": document["categories"]}
        (folder / "instances.json").write_text(json.dumps(subset), encoding="utf-8")
    return out / "instances.json"


def _copy(photograph: Path, folder: Path) -> None:
    try:
        shutil.copy(photograph, folder)
    except OSError as fault:
        raise RefsegError(f"{photograph} cannot be copied ({fault.strerror}); give COCO's folder train2017") from fault


if __name__ == "__main__":
    main()
