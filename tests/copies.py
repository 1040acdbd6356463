"""Small copies of the datasets in their published formats, for tests: six photographs, twelve expressions."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from refseg.data.published import catalogue
from refseg.data.published.catalogue import Counts

WIDTH, HEIGHT = 32, 24
CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]
SPLITS = {
    "unc": ["train", "train", "train", "val", "testA", "testB"],
    "umd": ["train", "train", "train", "val", "test", "test"],
}
SPLITS["google"] = ["train", "train", "train", "train", "val", "val"]


def photo_name(image_id):
    return f"COCO_train2014_{image_id:012d}.jpg"


def jpeg(size=(WIDTH, HEIGHT), orientation=None):
    image = Image.new("RGB", size, (90, 120, 60))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def square(left, top, side=6):
    """A polygon; its mask is columns left..left+side-1 of rows top..top+side-1."""
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def square_mask(left, top, side=6, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def instances(first=100, count=6):
    """Two people and a dog on every photograph, segment ids 10 × photograph + 0, 1, 2."""
    ids = range(first, first + count)
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": i, "file_name": photo_name(i), "height": HEIGHT, "width": WIDTH} for i in ids],
        "annotations": [
            {"id": 10 * i + n, "image_id": i, "category_id": category, "segmentation": square(2 + 9 * n, 5),
             "iscrowd": 0, "area": 36, "bbox": [2 + 9 * n, 5, 6, 6]}
            for i in ids for n, category in enumerate((1, 1, 18))
        ],
        "categories": CATEGORIES,
    }  # fmt: skip


def refs(partition="unc", first=100):
    """Per photograph one person, called twice; sentence ids count up."""
    found = []
    for number, split in enumerate(SPLITS[partition]):
        image_id = first + number
        expressions = [f"left man {number}", f"the person on the left {number}"]
        found.append(
            {
                "sent_ids": [2 * number, 2 * number + 1],
                "file_name": f"COCO_train2014_{image_id:012d}_{10 * image_id}.jpg",
                "ann_id": 10 * image_id, "ref_id": number, "image_id": image_id, "split": split, "category_id": 1,
                "sentences": [
                    {"tokens": text.split(), "raw": text.upper(), "sent_id": 2 * number + n, "sent": text}
                    for n, text in enumerate(expressions)
                ],
            }
        )  # fmt: skip
    return found


def grefs(first=100):
    """gRefCOCO: of each photograph's two people and dog, one person, both people, person and dog, and a cat."""
    found = []
    for number, split in enumerate(SPLITS["unc"]):
        image_id = first + number
        person, other, dog = (10 * image_id + n for n in range(3))
        meant = {
            "left man": ([person], [1]), "both people": ([person, other], [1, 1]),
            "the man and his dog": ([other, dog], [1, 18]), "the cat": ([-1], [-1]),
        }  # fmt: skip
        for text, (ann_ids, categories) in meant.items():
            ref_id = len(found)
            sentence = {"tokens": text.split(), "raw": text.title(), "sent_id": ref_id, "sent": text}
            found.append(
                {
                    "ref_id": ref_id, "image_id": image_id, "split": split, "ann_id": ann_ids,
                    "category_id": categories, "file_name": photo_name(image_id), "no_target": ann_ids == [-1],
                    "sent_ids": [ref_id], "sentences": [sentence],
                }
            )  # fmt: skip
    return found


def write_grefcoco(root, references=None, first=100):
    """grefs(unc).json and instances.json in root/grefcoco, photographs in root/images/train2014."""
    place = Path(root) / "grefcoco"
    place.mkdir(parents=True, exist_ok=True)
    (place / "grefs(unc).json").write_text(json.dumps(grefs(first) if references is None else references))
    (place / "instances.json").write_text(json.dumps(instances(first)))
    write_photographs(Path(root) / "images/train2014", first)
    return place


def write_photographs(folder, first=100, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in range(first, first + count):
        (folder / photo_name(image_id)).write_bytes(jpeg())


def write_published(root, folder="refcoco", partition="unc", *, first=100, protocol=2):
    """refs(unc).p and instances.json in root/refcoco, photographs in root/images/mscoco/images/train2014."""
    place = Path(root) / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / f"refs({partition}).p").write_bytes(pickle.dumps(refs(partition, first), protocol))
    (place / "instances.json").write_text(json.dumps(instances(first)))
    write_photographs(Path(root) / "images/mscoco/images/train2014", first)
    return place


def publish(monkeypatch, name="unc", partition="unc"):
    """Makes the small copy the published one, so that counts agree."""
    counts = {}
    for split in SPLITS[partition]:
        old = counts.get(split, Counts(0, 0, 0))
        counts[split] = Counts(old.expressions + 2, old.referents + 1, old.photographs + 1)
    monkeypatch.setitem(catalogue.DATASETS, name, replace(catalogue.DATASETS[name], splits=counts))
    return catalogue.DATASETS[name]


def write_referit(root, masks="mat", size=(HEIGHT, WIDTH)):
    """ReferIt's layout: three photographs, two segments each, one split a photograph; mask 0 inside as in SAIAPR."""
    import scipy.io

    place = Path(root) / "referit"
    for folder in ("data", "images", "mask"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for number, split in zip((38685, 30993, 16), ("train", "val", "test"), strict=True):
        (place / "images" / f"{number}.jpg").write_bytes(jpeg())
        queries = {f"{number}_{n}": ["sky", "anything but the sky"][: 3 - n] for n in (1, 2)}
        # as published: one key or text a line
        (place / "data" / f"referit_query_{split}.json").write_text(json.dumps(queries, separators=(",\n", ":\n")))
        for n in (1, 2):
            inside = square_mask(3 * n, 4, size=size)
            if masks == "mat":
                scipy.io.savemat(
                    place / "mask" / f"{number}_{n}.mat", {"segimg_t": np.where(inside, 0, 65).astype(float)}
                )
            else:
                Image.fromarray(inside).save(place / "mask" / f"{number}_{n}.png")
    return place
