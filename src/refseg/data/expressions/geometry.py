"""Where segments are, and how they relate to each other, with a margin.

Every judgement is +1 (anybody would say so), −1 (nobody would) or 0 (borderline).
Coordinates are fractions of the photograph's width and height, y downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refseg.data.expressions.colours import Colours
from refseg.masks import Mask

SMALLEST_SHARE = 0.0005
SMALLEST_PIXELS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One annotated region of a photograph, and what was measured about it."""

    id: int
    label: str
    mask: Mask
    """(H, W) bool."""
    area: float
    """Share of the photograph, 0..1."""
    box: tuple[float, float, float, float]
    """xyxy."""
    centre: tuple[float, float]
    """Centroid of the mask, (x, y)."""
    colours: Colours
    torso: Colours | None
    """Colours of the upper body of a standing person. None for anything else."""
    crowd: bool = False
    stuff: bool = False

    @property
    def tiny(self) -> bool:
        """Whether the segment is too small for anybody to mean it."""
        return self.area < SMALLEST_SHARE or self.area * self.mask.size < SMALLEST_PIXELS

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]


def interior(mask: Mask) -> Mask:
    """The pixels of a mask (H, W) whose four neighbours all belong to it."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner


def outline(mask: Mask) -> Mask:
    """The pixels of a mask (H, W) that have a neighbour outside it."""
    border: Mask = mask & ~interior(mask)
    return border


def box_and_centre(mask: Mask) -> tuple[tuple[float, float, float, float], tuple[float, float]]:
    """Box (xyxy) and centroid of a mask (H, W) that is not empty, in fractions."""
    height, width = mask.shape
    columns, rows = mask.sum(axis=0), mask.sum(axis=1)
    (xs,), (ys,) = np.nonzero(columns), np.nonzero(rows)
    area = columns.sum()
    x = float((columns * (np.arange(width) + 0.5)).sum() / area)
    y = float((rows * (np.arange(height) + 0.5)).sum() / area)
    box = (xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height)
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3])), (x / width, y / height)


def graded(value: float, yes: float, no: float) -> int:
    """+1 beyond `yes`, −1 beyond `no`, and 0 between them."""
    if yes < no:
        value, yes, no = -value, -yes, -no
    return 1 if value >= yes else -1 if value <= no else 0


Point = tuple[float, float]

_REGIONS: dict[str, Callable[[Point], int]] = {
    "left": lambda p: graded(p[0], 0.38, 0.5),
    "right": lambda p: graded(p[0], 0.62, 0.5),
    "top": lambda p: graded(p[1], 0.36, 0.5),
    "bottom": lambda p: graded(p[1], 0.64, 0.5),
    "far left": lambda p: graded(p[0], 0.2, 0.34),
    "far right": lambda p: graded(p[0], 0.8, 0.66),
    "middle": lambda p: graded(abs(p[0] - 0.5), 0.09, 0.2),
    "center": lambda p: graded(max(abs(p[0] - 0.5), abs(p[1] - 0.5)), 0.12, 0.24),
    "top left": lambda p: graded(max(p[0], p[1]), 0.36, 0.5),
    "top right": lambda p: graded(max(1 - p[0], p[1]), 0.36, 0.5),
    "bottom left": lambda p: graded(max(p[0], 1 - p[1]), 0.36, 0.5),
    "bottom right": lambda p: graded(max(1 - p[0], 1 - p[1]), 0.36, 0.5),
    "top left corner": lambda p: graded(max(p[0], p[1]), 0.2, 0.36),
    "top right corner": lambda p: graded(max(1 - p[0], p[1]), 0.2, 0.36),
    "bottom left corner": lambda p: graded(max(p[0], 1 - p[1]), 0.2, 0.36),
    "bottom right corner": lambda p: graded(max(1 - p[0], 1 - p[1]), 0.2, 0.36),
}
REGIONS = tuple(_REGIONS)


def in_region(segment: Segment, region: str) -> int:
    """Whether the segment is in that part of the photograph, judged by its centre.

    A crowd, or a segment that spans most of the photograph, is only where all of its box is.
    """
    judge = _REGIONS[region]
    x0, y0, x1, y1 = segment.box
    across = segment.width > 0.6 and region not in ("top", "bottom")
    down = segment.height > 0.6 and region not in ("left", "right", "far left", "far right", "middle")
    if segment.crowd or across or down:
        corners = {judge(point) for point in ((x0, y0), (x1, y0), (x0, y1), (x1, y1), segment.centre)}
        return corners.pop() if len(corners) == 1 else 0
    return judge(segment.centre)


_AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}


def further(segment: Segment, other: Segment, side: str) -> int:
    """Whether `segment` is further towards that side (left, right, top, bottom) than `other`."""
    axis, sign = _AXES[side]
    if segment.crowd or other.crowd:
        ends = segment.box if segment.crowd else other.box
        point = (other if segment.crowd else segment).centre[axis]
        nearer = 1 if point < ends[axis] - 0.03 else -1 if point > ends[axis + 2] + 0.03 else 0
        return nearer * sign * (-1 if segment.crowd else 1)
    extent = min(segment.box[axis + 2] - segment.box[axis], other.box[axis + 2] - other.box[axis])
    margin = max(0.025, 0.22 * extent)
    by_centroid = sign * (other.centre[axis] - segment.centre[axis])
    by_box = sign * (sum(other.box[axis::2]) - sum(segment.box[axis::2])) / 2
    if min(by_centroid, by_box) > margin:
        return 1
    return -1 if max(by_centroid, by_box) < -margin else 0


def rank(segment: Segment, others: Sequence[Segment], side: str) -> int:
    """The position of the segment counted from a side. 1 is the outermost; 0 if the order is not clear."""
    places = [further(segment, other, side) for other in others]
    return 0 if 0 in places else 1 + places.count(-1)


def row_sides(segments: Sequence[Segment]) -> tuple[str, str]:
    """The sides from which people count the segments: the two ends of their row or column."""
    height, width = segments[0].mask.shape
    across, down = (np.ptp([segment.centre[axis] for segment in segments]) for axis in (0, 1))
    return ("left", "right") if across * width >= down * height else ("top", "bottom")


def outermost(segment: Segment, others: Sequence[Segment], side: str) -> int:
    """+1 if the segment is clearly the nearest one to that side."""
    return min((further(segment, other, side) for other in others), default=1)


def apart(segment: Segment, others: Sequence[Segment], side: str) -> bool:
    """Whether "left" is enough without "most": the segment is there, and far from the next one."""
    axis = _AXES[side][0]
    distance = min((abs(segment.centre[axis] - other.centre[axis]) for other in others), default=1)
    return in_region(segment, side) == 1 and distance > 0.15


def larger(segment: Segment, other: Segment, ratio: float = 1.45) -> int:
    """Whether `segment` covers clearly more of the photograph."""
    return graded(segment.area / other.area, ratio, 1 / ratio)


def taller(segment: Segment, other: Segment) -> int:
    """Whether `segment` is clearly higher in the photograph, from its foot to its head."""
    return graded(segment.height / other.height, 1.2, 1 / 1.2)


def nearer_to_camera(segment: Segment, other: Segment) -> int:
    """For things on the ground: the bottom edge is lower and, as a second sign, the height is no less."""
    drop = segment.box[3] - other.box[3]
    margin = max(0.02, 0.25 * min(segment.height, other.height))
    cut = segment.box[3] > 0.985 and other.box[3] > 0.985
    if cut or segment.crowd or other.crowd:
        return 0
    if drop > margin and segment.height >= 0.95 * other.height and segment.area >= 1.1 * other.area:
        return 1
    return -1 if drop < -margin and other.height >= 0.95 * segment.height and other.area >= 1.1 * segment.area else 0


def _overlap(segment: Segment, other: Segment, axis: int) -> float:
    """The shared extent along an axis, as a share of the smaller one. Negative if they are apart."""
    low, high = max(segment.box[axis], other.box[axis]), min(segment.box[axis + 2], other.box[axis + 2])
    smaller = min(segment.box[axis + 2] - segment.box[axis], other.box[axis + 2] - other.box[axis])
    return (high - low) / smaller


def beside(segment: Segment, anchor: Segment, side: str) -> int:
    """Whether the segment is left of, right of, above ("top") or below ("bottom") the anchor."""
    axis, sign = _AXES[side]
    near, far = (axis, axis + 2) if sign > 0 else (axis + 2, axis)
    apart = sign * (anchor.box[near] - segment.centre[axis])
    inner = sign * (anchor.centre[axis] - segment.box[far])
    ahead = sign * (anchor.centre[axis] - segment.centre[axis])
    if segment.crowd or anchor.crowd:
        return 0
    if apart > 0.01 and inner > 0.01 and _overlap(segment, anchor, 1 - axis) > 0.25:
        return 1
    return -1 if ahead < -0.02 else 0


def gap(segment: Segment, other: Segment) -> float:
    """The distance between the boxes, as a share of the photograph's diagonal. 0 if they touch."""
    height, width = segment.mask.shape
    across = max(0.0, segment.box[0] - other.box[2], other.box[0] - segment.box[2]) * width
    down = max(0.0, segment.box[1] - other.box[3], other.box[1] - segment.box[3]) * height
    return float(np.hypot(across, down) / np.hypot(width, height))


def next_to(segment: Segment, anchor: Segment) -> int:
    """Whether the two are side by side, close together and of similar size."""
    distance = gap(segment, anchor)
    comparable = 1 / 8 < segment.area / anchor.area < 8
    across = _overlap(segment, anchor, 0)
    if distance <= 0.03 and comparable and across < 0.25 and _overlap(segment, anchor, 1) > 0.5:
        return 1
    return -1 if distance > 0.12 else 0


def closest_to(segment: Segment, others: Sequence[Segment], anchor: Segment) -> bool:
    """Whether the segment is clearly nearer the anchor than all others."""
    distance = gap(segment, anchor)
    return min(gap(other, anchor) for other in others) - distance >= max(0.06, 0.6 * distance)


def farthest_from(segment: Segment, others: Sequence[Segment], anchor: Segment) -> bool:
    """Whether the segment is clearly farther from the anchor than all others."""
    next_best = max(gap(other, anchor) for other in others)
    return gap(segment, anchor) - next_best >= max(0.08, 0.5 * next_best)


def between(segment: Segment, first: Segment, second: Segment) -> int:
    """Whether the segment is between two anchors, one on its left and one on its right, all at one height."""
    if first.centre[0] > second.centre[0]:
        first, second = second, first
    x = segment.centre[0]
    if any(thing.crowd for thing in (segment, first, second)):
        return 0
    level = min(_overlap(segment, first, 1), _overlap(segment, second, 1)) > 0.3
    if first.box[2] < x < second.box[0] and level and segment.width < 2 * (second.box[0] - first.box[2]):
        return 1
    return -1 if x < first.centre[0] - 0.02 or x > second.centre[0] + 0.02 else 0


def belongs_to(anchor: Segment, segment: Segment) -> int:
    """Whether a carried or worn thing (the anchor) belongs to this segment: it is within or on it."""
    x0, y0, x1, y1 = anchor.box
    inside = max(0.0, min(x1, segment.box[2]) - max(x0, segment.box[0]))
    inside *= max(0.0, min(y1, segment.box[3]) - max(y0, segment.box[1]))
    share = inside / (anchor.width * anchor.height)
    return 1 if share > 0.8 else -1 if gap(anchor, segment) > 0.04 else 0
