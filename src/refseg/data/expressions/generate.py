"""Referring expressions made from any COCO-format instance file: true, unambiguous and seeded.

instances.json ─ read ─▶ segments of a photograph ─ sentences ─▶ candidates ─ choose ─▶ rows
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refseg.data.expressions.claims import Sentence, sentences
from refseg.data.expressions.geometry import Segment
from refseg.data.expressions.segments import SegmentedPhoto
from refseg.data.instances import read_instances
from refseg.data.table import Row
from refseg.masks import encode_mask

# Kinds that are possible in few photographs weigh more there.
_KIND_WEIGHTS = {
    "category": 1.0, "colour": 1.2, "position": 1.3, "size": 1.5, "ordinal": 1.2, "relation": 1.1, "stuff": 1.6,
    "several": 0.9, "negation": 1.2, "closest": 6.0,
}  # fmt: skip
_SIBLING_WEIGHT = 8.0


def generate(
    instances: Path, images: Path | None = None, *, seed: int = 0, per_photo: int = 40, split: str = ""
) -> Iterator[Row]:
    """Up to `per_photo` expressions for each photograph of a COCO-format instance file.

    `images` is the folder of the photographs, by default `images/` next to the file. Masks may be polygons or run
    lengths. A photograph's expressions depend only on its id, its content and the seed. Photographs and segments
    that cannot be used are skipped with a warning. Raises RefsegError if the file is not an instance file.
    """
    for photo in map(SegmentedPhoto, read_instances(instances, images)):
        draw = random.Random(f"{seed}/{photo.image_id}")
        found = _unambiguous(sentences(photo, draw))
        yield from rows_of(_choose(found, photo, per_photo, draw), photo, split)


def rows_of(chosen: Iterable[Sentence], photo: SegmentedPhoto, split: str) -> Iterator[Row]:
    """A row for each sentence about one photograph. Each referent's mask is encoded once."""
    counts: dict[tuple[int, ...], str] = {}
    for sentence in chosen:
        ids = tuple(segment.id for segment in sentence.referent)
        if ids not in counts:
            mask = np.zeros((photo.height, photo.width), dtype=bool)
            for segment in sentence.referent:
                mask |= segment.mask
            counts[ids] = encode_mask(mask)
        labels = {segment.label for segment in sentence.referent}
        yield Row(
            image=photo.path, image_id=photo.image_id, height=photo.height, width=photo.width,
            expression=sentence.expression, counts=counts[ids], segment_ids=ids,
            label=labels.pop() if len(labels) == 1 else "", kind=sentence.kind,
            siblings=photo.siblings(sentence.referent), split=split,
        )  # fmt: skip


def _unambiguous(found: Iterable[Sentence]) -> list[Sentence]:
    """Each expression once. An expression with two different referents is left out."""
    meant: dict[str, Sentence] = {}
    twice = set()
    for sentence in found:
        first = meant.setdefault(sentence.expression, sentence)
        if set(first.referent) != set(sentence.referent):
            twice.add(sentence.expression)
    return [sentence for expression, sentence in meant.items() if expression not in twice]


def _choose(
    found: Sequence[Sentence], photo: SegmentedPhoto, per_photo: int, draw: random.Random
) -> Iterator[Sentence]:
    """Draws without replacement. Kinds are drawn by weight, and referents in turn, those with siblings more often."""
    piles: dict[tuple[str, tuple[Segment, ...]], list[Sentence]] = defaultdict(list)
    for sentence in found:
        piles[sentence.kind, sentence.referent].append(sentence)
    kinds, referents = Counter[str](), Counter[tuple[Segment, ...]]()
    for pile in piles.values():
        draw.shuffle(pile)
    for _ in range(min(per_photo, len(found))):
        best = max(piles, key=lambda key: _urgency(photo, piles[key][0], kinds, referents) * (0.5 + draw.random()))
        sentence = piles[best].pop()
        kinds[sentence.kind] += 1
        referents[sentence.referent] += 1
        if not piles[best]:
            del piles[best]
        yield sentence


def _urgency(
    photo: SegmentedPhoto, sentence: Sentence, kinds: Counter[str], referents: Counter[tuple[Segment, ...]]
) -> float:
    weight = _SIBLING_WEIGHT if len(sentence.referent) == 1 and photo.siblings(sentence.referent) else 1.0
    kind = _KIND_WEIGHTS[sentence.kind] / (1 + kinds[sentence.kind])
    return float(weight * kind / (1 + referents[sentence.referent]))


_SIDED = re.compile(r"\b(left|right)(?=(?:most|side|hand)?\b)")


def mirror_expression(expression: str) -> str:
    """The expression that is true of the mirrored photograph: left and right are exchanged, and nothing else.

    Mirroring twice returns the expression.
    """
    return _SIDED.sub(lambda found: "right" if found[1] == "left" else "left", expression)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a table of expressions contains."""

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
    """Counts rows. Without rows, every count is zero."""
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
