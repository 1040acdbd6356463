"""Sentences that people typed for annotated photographs, as rows of the expression table.

One JSON object a line: {"image_id": 139, "annotations": [4], "expression": "chair on the left"}.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refseg.data.expressions.claims import Sentence
from refseg.data.expressions.generate import rows_of
from refseg.data.expressions.geometry import Segment
from refseg.data.expressions.segments import SegmentedPhoto
from refseg.data.instances import read_instances
from refseg.data.table import Row
from refseg.errors import RefsegError

KIND, NOTHING = "typed", "nothing"
"""Kinds of rows: sentences with a referent, and sentences that mean nothing in their photograph."""


@dataclass(frozen=True, slots=True)
class TypedSentence:
    """One line of the file."""

    place: str
    """The file and the line, for messages."""
    image_id: int | str
    annotations: tuple[int, ...]
    """Ids of the segments whose union is the referent.

    Several for expressions such as "both shoes", none for a sentence that means nothing in the photograph.
    """
    expression: str


def typed_rows(instances: Path, sentences: Path, images: Path | None = None, *, split: str = "") -> Iterator[Row]:
    """A row for each line of `sentences`, about the photographs of a COCO-format instance file.

    Rows are of kind "typed". A line whose `annotations` are empty becomes a row of kind "nothing" with an empty mask.
    `images` is the folder of the photographs, by default `images/` next to the instances. Siblings are counted as
    for generated expressions. Raises RefsegError that names the line if the line is no sentence, has no words, or
    names a photograph or a segment that cannot be used.
    """
    pending: dict[int | str, list[TypedSentence]] = defaultdict(list)
    for sentence in _read(sentences):
        pending[sentence.image_id].append(sentence)
    for photo in map(SegmentedPhoto, read_instances(instances, images, set(pending))):
        about_photo = pending.pop(photo.image_id, [])
        yield from rows_of((_resolve(sentence, photo) for sentence in about_photo), photo, split)
    for first, *_ in pending.values():
        raise RefsegError(
            f"{first.place}: {instances} has no photograph with the id {first.image_id!r} that can be read; "
            "use an 'id' of its 'images' and put the photographs in images/ next to it"
        )


def _read(path: Path) -> Iterator[TypedSentence]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
            image_id, ids = record["image_id"], dict.fromkeys(map(int, record["annotations"]))
            if not isinstance(image_id, int | str):
                raise TypeError("image_id is neither a number nor a name")
            sentence = TypedSentence(place, image_id, tuple(ids), str(record["expression"]).strip())
        except (ValueError, TypeError, KeyError) as fault:
            raise RefsegError(
                f"{place}: this is no sentence ({fault}); "
                'write for example {"image_id": 139, "annotations": [4], "expression": "chair on the left"}'
            ) from fault
        if not sentence.expression:
            raise RefsegError(f"{place}: 'expression' is empty; fill it in or delete the line")
        yield sentence


def _resolve(sentence: TypedSentence, photo: SegmentedPhoto) -> Sentence:
    """The sentence with the segments it means instead of their ids."""
    segments = {segment.id: segment for segment in photo.segments}
    referent: list[Segment] = []
    for identity in sentence.annotations:
        if identity not in segments:
            raise RefsegError(
                f"{sentence.place}: photograph {sentence.image_id!r} has no segment {identity}; "
                f"name one of {', '.join(map(str, segments)) or 'another photograph'}"
            )
        referent.append(segments[identity])
    return Sentence(KIND if referent else NOTHING, tuple(referent), sentence.expression)
