"""All segments of one photograph: which a name could mean, and which touch each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refseg.data.expressions import geometry
from refseg.data.expressions.colours import Colours, measure
from refseg.data.expressions.geometry import Segment
from refseg.data.expressions.names import Name, names
from refseg.data.instances import AnnotatedPhoto, Instance
from refseg.masks import Mask

Contact = npt.NDArray[np.float64]


class SegmentedPhoto:
    """One photograph and its measured segments."""

    def __init__(self, annotated: AnnotatedPhoto) -> None:
        self.path, self.image_id = annotated.path, annotated.image_id
        self.height, self.width = annotated.pixels.shape[:2]
        self.unplaced = annotated.unplaced
        """Labels of segments whose masks cannot be used. No name that could mean one of them is used."""
        self.segments = tuple(_segment(instance, annotated.pixels) for instance in annotated.instances)
        self.count = Counter(segment.label for segment in self.segments)
        self._index = {segment: index for index, segment in enumerate(self.segments)}
        self._contacts: dict[tuple[Segment, bool], Contact] = {}

    def candidates(self, name: Name) -> tuple[Segment, ...]:
        """All segments that the name could mean, tiny ones and crowds included."""
        return tuple(segment for segment in self.segments if name.could_mean(segment.label))

    def usable(self, name: Name) -> bool:
        """Whether the place of everything that the name could mean is known."""
        return not self.unplaced if name.means is None else not self.unplaced & name.means

    def names(self, segment: Segment) -> list[Name]:
        """The names of the segment in this photograph, plainest first."""
        alone = self.count[segment.label] == 1
        return [name for name in names(segment.label, alone) if self.usable(name)]

    def siblings(self, referent: Sequence[Segment]) -> int:
        """How many segments outside the referent have its label. 0 if the referent has several labels."""
        labels = {segment.label for segment in referent}
        return self.count[labels.pop()] - len(referent) if len(labels) == 1 else 0

    def rests_on(self, segment: Segment, support: Segment) -> int:
        """Whether the lower edge of the segment is on the support."""
        return self._touches(segment, support, below=True, yes=0.6, no=0.1)

    def lies_in(self, segment: Segment, surrounding: Segment) -> int:
        """Whether nearly all of the segment's outline borders on the surrounding segment."""
        return self._touches(segment, surrounding, below=False, yes=0.75, no=0.2)

    def _touches(self, segment: Segment, other: Segment, *, below: bool, yes: float, no: float) -> int:
        if segment.stuff or segment.crowd:
            return 0
        if (segment, below) not in self._contacts:
            self._contacts[segment, below] = self._contact(segment, below)
        return geometry.graded(float(self._contacts[segment, below][self._index[other]]), yes, no)

    @cached_property
    def _owner(self) -> npt.NDArray[np.int32]:
        """The index of the topmost (smallest) segment at each pixel, (H, W). −1 at pixels of no segment."""
        owner = np.full((self.height, self.width), -1, dtype=np.int32)
        for segment in sorted(self.segments, key=lambda segment: -segment.area):
            owner[segment.mask] = self._index[segment]
        return owner

    def _contact(self, segment: Segment, below: bool) -> Contact:
        """The share of this segment's lower edge, or outline, beyond which each of N segments is, (N,) in 0..1."""
        height, width = self._owner.shape
        reach = 3 if below else max(3, height // 100)
        rows, columns = np.nonzero(_lower_edge(segment.mask) if below else geometry.outline(segment.mask))
        steps = ((reach, 0),) if below else ((reach, 0), (-reach, 0), (0, reach), (0, -reach))
        shares = np.zeros(len(self.segments) + 1)
        total = 0
        for down, across in steps:
            y, x = rows + down, columns + across
            seen = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            neighbours = self._owner[y[seen], x[seen]]
            neighbours = neighbours[neighbours != self._index[segment]]
            shares += np.bincount(neighbours + 1, minlength=len(shares))
            total += len(neighbours) + int((~seen).sum())
        return np.asarray(shares[1:] / max(total, 1))


def _lower_edge(mask: Mask) -> Mask:
    """The lowest pixel of every column that reaches the lower fifth of the mask (H, W)."""
    rows = np.flatnonzero(mask.any(axis=1))
    limit = rows[-1] - 0.2 * (rows[-1] - rows[0]) - 1
    lowest = mask.shape[0] - 1 - mask[::-1].argmax(axis=0)
    columns = np.flatnonzero(mask.any(axis=0) & (lowest >= limit))
    edge = np.zeros_like(mask)
    edge[lowest[columns], columns] = True
    return edge


def _segment(instance: Instance, pixels: npt.NDArray[np.uint8]) -> Segment:
    mask = instance.mask
    box, centre = geometry.box_and_centre(mask)
    inner = geometry.interior(mask)  # the outline's pixels mix with the neighbours'
    rows, columns = np.nonzero(inner if inner.any() else mask)
    colours = _measured(pixels, rows, columns)
    torso = None
    top, bottom = box[1] * mask.shape[0], box[3] * mask.shape[0]
    upright = (bottom - top) > 1.6 * (box[2] - box[0]) * mask.shape[1]
    if instance.label == "person" and upright and not instance.crowd:
        band = (rows > top + 0.2 * (bottom - top)) & (rows < top + 0.45 * (bottom - top))
        if band.sum() >= 200:
            torso = _measured(pixels, rows[band], columns[band])
    return Segment(
        id=instance.id, label=instance.label, mask=mask, area=float(mask.mean()), box=box, centre=centre,
        colours=colours, torso=torso, crowd=instance.crowd, stuff=instance.stuff,
    )  # fmt: skip


def _measured(pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Colours:
    step = max(1, len(rows) // 2000)
    return measure(pixels[rows[::step], columns[::step]])
