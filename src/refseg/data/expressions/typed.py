"""Sentences that people typed for annotated segments, as rows of the expression table.

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
from refseg.data.expressions.segments import Scene, read_scenes
from refseg.data.table import Row
from refseg.errors import RefsegError

KIND = "typed"


@dataclass(frozen=True, slots=True)
class Typed:
    """One line of the file."""

    place: str
    """The file and the line, for messages."""
    image_id: int | str
    annotations: tuple[int, ...]
    """Segments whose union is the referent; more than one for expressions such as "both shoes"."""
    expression: str


def typed_rows(instances: Path, sentences: Path, images: Path | None = None, *, split: str = "") -> Iterator[Row]:
    """A row of kind "typed" for each line of `sentences`, about the segments of a COCO-format instance file.

    `images` is the folder of the photographs, by default `images/` beside the instances. Siblings are counted as
    for generated expressions. Raises RefsegError that names the line where it is none, has no words, or names a
    photograph or a segment that cannot be used.
    """
    pending: dict[int | str, list[Typed]] = defaultdict(list)
    for one in _read(sentences):
        pending[one.image_id].append(one)
    for scene, path, image_id in read_scenes(instances, images, set(pending)):
        said = (Sentence(KIND, _referent(one, scene), one.expression) for one in pending.pop(image_id, []))
        yield from rows_of(said, scene, path, image_id, split)
    for first, *_ in pending.values():
        raise RefsegError(
            f"{first.place}: {instances} has no photograph with the id {first.image_id!r} that can be read; "
            "use an 'id' of its 'images' and put the photographs in images/ beside it"
        )


def _read(path: Path) -> Iterator[Typed]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
            image_id, identities = record["image_id"], dict.fromkeys(map(int, record["annotations"]))
            if not isinstance(image_id, int | str):
                raise TypeError("image_id is neither a number nor a name")
            one = Typed(place, image_id, tuple(identities), str(record["expression"]).strip())
        except (ValueError, TypeError, KeyError) as fault:
            raise RefsegError(
                f"{place}: this is no sentence ({fault}); "
                'write for example {"image_id": 139, "annotations": [4], "expression": "chair on the left"}'
            ) from fault
        if not one.expression or not one.annotations:
            missing = "annotations" if one.expression else "expression"
            raise RefsegError(f"{place}: '{missing}' is empty; fill it in or delete the line")
        yield one


def _referent(one: Typed, scene: Scene) -> tuple[Segment, ...]:
    segments = {segment.id: segment for segment in scene.segments}
    for identity in one.annotations:
        if identity not in segments:
            raise RefsegError(
                f"{one.place}: photograph {one.image_id!r} has no segment {identity}; "
                f"name one of {', '.join(map(str, segments)) or 'another photograph'}"
            )
    return tuple(segments[identity] for identity in one.annotations)
