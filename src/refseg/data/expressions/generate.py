"""Referring expressions made from any COCO-format instance file: true, unambiguous and seeded.

instances.json ─ read ─▶ segments of a photograph ─ sentences ─▶ candidates ─ choose ─▶ rows
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refseg.data.expressions.claims import Sentence, sentences
from refseg.data.expressions.colours import Colours, measure
from refseg.data.expressions.geometry import Segment, box_and_centre, interior
from refseg.data.expressions.segments import Scene
from refseg.data.published.referents import Unusable, encode_segmentation
from refseg.data.table import Row, encode_mask
from refseg.errors import RefsegError
from refseg.photo import read_photo

_log = logging.getLogger(__name__)

# Kinds that few photographs allow weigh more where they are possible.
_KIND_WEIGHTS = {
    "category": 1.0, "colour": 1.2, "position": 1.3, "size": 1.5, "ordinal": 1.2, "relation": 1.1, "stuff": 1.6,
    "several": 0.9, "negation": 1.2, "closest": 6.0,
}  # fmt: skip
_SIBLING_WEIGHT = 8.0


def generate(
    instances: Path, images: Path | None = None, *, seed: int = 0, per_photo: int = 40, split: str = ""
) -> Iterator[Row]:
    """Up to `per_photo` expressions for each photograph of a COCO-format instance file.

    `images` is the folder of the photographs, by default `images/` beside the file. Masks may be polygons or run
    lengths. A photograph's expressions depend on its id, its content and the seed alone. Photographs and segments
    that cannot be used are skipped with a warning. Raises RefsegError where the file is no instance file.
    """
    for scene, path, image_id in read_scenes(instances, images):
        yield from _rows(scene, path, image_id, seed, per_photo, split)


def read_scenes(
    instances: Path, images: Path | None = None, only: Container[Any] | None = None
) -> Iterator[tuple[Scene, Path, int | str]]:
    """The segments of each photograph of a COCO-format instance file, with the photograph's file and id.

    `only`: the ids of the photographs wanted, by default all. Photographs and segments that cannot be used are
    skipped with a warning. Raises RefsegError where the file is no instance file.
    """
    document = _read(instances)
    folder = images if images is not None else instances.parent / "images"
    labels = {category["id"]: category for category in document["categories"]}
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in document["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    records = [record for record in document["images"] if only is None or record["id"] in only]
    skipped = 0
    for record in records:
        path = folder / record["file_name"]
        pixels = _pixels(path)
        if pixels is None:
            skipped += 1
            continue
        yield _scene(pixels, annotations[record["id"]], labels, path), path, record["id"]
    if skipped:
        _log.warning("skipped %d of %d photographs of %s", skipped, len(records), instances)


def _read(instances: Path) -> dict[str, Any]:
    cure = "give a COCO-format file with the keys images, annotations and categories"
    try:
        document = json.loads(instances.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RefsegError(f"{instances} cannot be read ({fault.strerror}); {cure}") from fault
    except ValueError as fault:
        raise RefsegError(f"{instances} is not JSON ({fault}); {cure}") from fault
    required = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id", "segmentation"),
        "categories": ("id", "name"),
    }
    for key, fields in required.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise RefsegError(f"{instances} has no list '{key}'; {cure}")
        for entry in entries:
            missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if missing:
                raise RefsegError(f"{instances} has an entry of '{key}' without '{missing[0]}'; {cure}")
    unknown = {entry["category_id"] for entry in document["annotations"]}
    unknown -= {entry["id"] for entry in document["categories"]}
    if unknown:
        raise RefsegError(f"{instances} uses category {min(unknown)} without naming it; add it to 'categories'")
    return dict(document)


def _pixels(path: Path) -> npt.NDArray[np.uint8] | None:
    """The photograph as displayed, (H, W, 3) uint8; None, with a warning, where it cannot be read."""
    try:
        return np.asarray(read_photo(path))
    except RefsegError as fault:
        _log.warning("skipped the photograph %s: %s", path, fault)
        return None


def _scene(
    pixels: npt.NDArray[np.uint8],
    annotations: Sequence[dict[str, Any]],
    labels: dict[Any, dict[str, Any]],
    path: Path,
) -> Scene:
    segments, unplaced = [], set()
    for number, annotation in enumerate(annotations, start=1):
        category = labels[annotation["category_id"]]
        try:
            mask = _mask(annotation["segmentation"], pixels.shape[0], pixels.shape[1])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as fault:
            _log.warning("skipped a segment (%s) of %s: %s", category["name"], path, fault)
            unplaced.add(category["name"])
            continue
        if mask.any():
            segments.append(_segment(annotation.get("id", number), annotation, category, mask, pixels))
    return Scene(segments, frozenset(unplaced))


def _mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """A segment's mask (H, W) from polygons or run lengths; ValueError if it is damaged or of another size."""
    if isinstance(segmentation, dict):
        declared = [int(side) for side in segmentation["size"]]
        if declared != [height, width]:
            raise ValueError(f"it is {declared[1]}×{declared[0]} and the photograph {width}×{height}")
    try:
        rle = encode_segmentation(segmentation, (height, width))
    except Unusable as fault:
        raise ValueError(str(fault)) from fault
    return np.asarray(coco_mask.decode(rle), dtype=bool)


def _segment(
    identity: int, annotation: dict[str, Any], category: dict[str, Any], mask: npt.NDArray[np.bool_],
    pixels: npt.NDArray[np.uint8],
) -> Segment:  # fmt: skip
    box, centre = box_and_centre(mask)
    inner = interior(mask)  # the outline's pixels mix with the neighbours'
    rows, columns = np.nonzero(inner if inner.any() else mask)
    colours = _measured(pixels, rows, columns)
    crowd = bool(annotation.get("iscrowd", 0))
    torso = None
    top, bottom = box[1] * mask.shape[0], box[3] * mask.shape[0]
    upright = (bottom - top) > 1.6 * (box[2] - box[0]) * mask.shape[1]
    if category["name"] == "person" and upright and not crowd:
        band = (rows > top + 0.2 * (bottom - top)) & (rows < top + 0.45 * (bottom - top))
        if band.sum() >= 200:
            torso = _measured(pixels, rows[band], columns[band])
    return Segment(
        id=int(identity), label=category["name"], mask=mask, area=float(mask.mean()), box=box, centre=centre,
        colours=colours, torso=torso, crowd=crowd, stuff=category.get("isthing", 1) == 0,
    )  # fmt: skip


def _measured(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Colours:
    step = max(1, len(rows) // 2000)
    return measure(pixels[rows[::step], columns[::step]])


# ---------------------------------------------------------------- from sentences to rows


def _rows(scene: Scene, path: Path, image_id: int | str, seed: int, per_photo: int, split: str) -> Iterator[Row]:
    draw = random.Random(f"{seed}/{image_id}")
    found = _unambiguous(sentences(scene, draw))
    yield from rows_of(_choose(found, scene, per_photo, draw), scene, path, image_id, split)


def rows_of(chosen: Iterable[Sentence], scene: Scene, path: Path, image_id: int | str, split: str) -> Iterator[Row]:
    """A row for each sentence of one photograph; each referent's mask is encoded once."""
    counts: dict[tuple[int, ...], str] = {}
    for sentence in chosen:
        ids = tuple(segment.id for segment in sentence.referent)
        if ids not in counts:
            counts[ids] = encode_mask(np.logical_or.reduce([segment.mask for segment in sentence.referent]))
        labels = {segment.label for segment in sentence.referent}
        label = labels.pop() if len(labels) == 1 else ""
        height, width = sentence.referent[0].mask.shape
        yield Row(
            image=path, image_id=image_id, height=height, width=width, expression=sentence.expression,
            counts=counts[ids], segment_ids=ids, label=label, kind=sentence.kind,
            siblings=scene.siblings(sentence.referent), split=split,
        )  # fmt: skip


def _unambiguous(found: Iterable[Sentence]) -> list[Sentence]:
    """Each expression once, and none that was said of two different referents."""
    meant: dict[str, Sentence] = {}
    twice = set()
    for sentence in found:
        first = meant.setdefault(sentence.expression, sentence)
        if set(first.referent) != set(sentence.referent):
            twice.add(sentence.expression)
    return [sentence for expression, sentence in meant.items() if expression not in twice]


def _choose(found: Sequence[Sentence], scene: Scene, per_photo: int, draw: random.Random) -> Iterator[Sentence]:
    """Draws without replacement: kinds by weight, referents in turn, those with siblings more often."""
    piles: dict[tuple[str, tuple[Segment, ...]], list[Sentence]] = defaultdict(list)
    for sentence in found:
        piles[sentence.kind, sentence.referent].append(sentence)
    kinds, referents = Counter[str](), Counter[tuple[Segment, ...]]()
    for pile in piles.values():
        draw.shuffle(pile)
    for _ in range(min(per_photo, len(found))):
        best = max(piles, key=lambda key: _urgency(scene, piles[key][0], kinds, referents) * (0.5 + draw.random()))
        sentence = piles[best].pop()
        kinds[sentence.kind] += 1
        referents[sentence.referent] += 1
        if not piles[best]:
            del piles[best]
        yield sentence


def _urgency(scene: Scene, sentence: Sentence, kinds: Counter[str], referents: Counter[tuple[Segment, ...]]) -> float:
    weight = _SIBLING_WEIGHT if len(sentence.referent) == 1 and scene.siblings(sentence.referent) else 1.0
    kind = _KIND_WEIGHTS[sentence.kind] / (1 + kinds[sentence.kind])
    return float(weight * kind / (1 + referents[sentence.referent]))


_SIDED = re.compile(r"\b(left|right)(?=(?:most|side|hand)?\b)")


def mirror_expression(expression: str) -> str:
    """The expression that is true of the mirrored photograph: left and right exchanged, all else as it was.

    Mirroring twice gives the expression back.
    """
    return _SIDED.sub(lambda found: "right" if found[1] == "left" else "left", expression)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a table of expressions holds."""

    expressions: int
    photographs: int
    referents: int
    kinds: dict[str, int]
    """Expressions per kind, most frequent first."""
    with_siblings: float
    """Share of the expressions whose referent has a sibling of its own label, 0..1."""
    words_per_expression: float
    vocabulary: int
    """Number of distinct words."""


def statistics(rows: Iterable[Row]) -> Statistics:
    """Counts over rows; all zero for none."""
    rows = list(rows)
    words = [re.findall(r"[a-z0-9']+", row.expression.lower()) for row in rows]
    count = max(len(rows), 1)
    return Statistics(
        expressions=len(rows),
        photographs=len({row.image for row in rows}),
        referents=len({(row.image, row.segment_ids or row.counts) for row in rows}),
        kinds=dict(Counter(row.kind for row in rows).most_common()),
        with_siblings=sum(row.siblings > 0 for row in rows) / count,
        words_per_expression=sum(map(len, words)) / count,
        vocabulary=len({word for expression in words for word in expression}),
    )
