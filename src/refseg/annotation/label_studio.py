"""Label Studio: its labelling configuration read, and masks in its own encodings."""

from __future__ import annotations

import hashlib
import math
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.masks import Mask

Points = npt.NDArray[np.float64]

_EXAMPLE = (
    '<Image name="photo" value="$image"/><BrushLabels name="what" toName="photo"><Label value="bag"/></BrushLabels>'
)
_CONTROLS = frozenset({"BrushLabels", "PolygonLabels"})
_MAX_CHARACTERS, _MAX_DEPTH, _MAX_CONTROLS = 100_000, 50, 10
"""Of a labelling configuration. Label Studio's own templates have less than a tenth of it."""
_RUN_BITS = (3, 4, 8, 16)
_STAIR = 1.5
"""Pixels: what turns the stairs of a slanting edge into a line."""
_LARGEST_RUN = 1 << _RUN_BITS[-1]


@dataclass(frozen=True)
class Control:
    """A tag that takes masks of a photograph."""

    name: str
    photo: str
    """The name of the Image tag."""
    key: str
    """The photograph's place in a task's data."""
    kind: str
    """brushlabels or polygonlabels, as results spell it."""
    labels: dict[str, str]
    """Expressions of labels: the attribute `expression` of a Label, or else its value."""


def read_config(text: str) -> list[Control]:
    """The BrushLabels and PolygonLabels of a labelling configuration.

    Raises RefsegError if it is not one, if it is larger than any that people write, or if none of these tags has
    labels and belongs to an Image.
    """
    if len(text) > _MAX_CHARACTERS:
        raise RefsegError(f"the labelling configuration has {len(text):,} characters; the limit is {_MAX_CHARACTERS:,}")
    if "<!" in text.replace("<!--", ""):
        raise RefsegError("the labelling configuration declares a document type; leave that out")
    found = _Tags()
    try:
        parser = ElementTree.XMLParser(target=found)
        parser.feed(text)
        parser.close()
    except ElementTree.ParseError as fault:
        raise RefsegError(f"the labelling configuration is not XML ({fault}); save it in Label Studio first") from fault
    controls = [
        Control(tag.get("name", ""), photo, found.keys[photo], kind, labels)
        for kind, tag, labels in found.controls
        if labels and found.keys.get(photo := tag.get("toName", ""))
    ]
    if not controls:
        raise RefsegError(f"the labelling configuration takes no masks of an image; for example: {_EXAMPLE}")
    return controls


class _Tags:
    """What a parser finds in a labelling configuration, in one pass."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        """The names of Image tags, and the place of each one's photograph in a task's data."""
        self.controls: list[tuple[str, dict[str, str], dict[str, str]]] = []
        """Tags that take masks: kind, attributes, and expressions of labels."""
        self._open: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) > _MAX_DEPTH:
            raise RefsegError(f"the labelling configuration nests more than {_MAX_DEPTH} tags; nest fewer")
        if name == "Image":
            self.keys[attributes.get("name", "")] = attributes.get("value", "").removeprefix("$")
        elif name in _CONTROLS:
            self.controls.append((name.lower(), attributes, {}))
            if len(self.controls) > _MAX_CONTROLS:
                raise RefsegError(
                    f"the labelling configuration has more than {_MAX_CONTROLS} tags for masks; use fewer"
                )
        elif name == "Label" and not _CONTROLS.isdisjoint(self._open):
            value = attributes.get("value", "")
            self.controls[-1][2][attributes.get("alias") or value] = attributes.get("expression") or value

    def end(self, _: str) -> None:
        self._open.pop()

    def data(self, _: str) -> None:
        """Text between tags means nothing."""

    def close(self) -> None:
        """All was found on the way."""


def find_photo(address: str, folder: Path) -> Path:
    """The file that a task's address means: one in `folder`, which is where Label Studio keeps its files.

    /data/local-files/?d=a.jpg is a.jpg there, /data/upload/1/a.jpg is upload/1/a.jpg, and a.jpg is itself. Raises
    RefsegError for what lies outside, does not exist, or would have to be fetched.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme or parts.netloc:
        raise RefsegError(
            "the photograph is at an address, and nothing is fetched; let Label Studio serve it from local files"
        )
    if parts.path == "/data/local-files/":
        inside = urllib.parse.parse_qs(parts.query).get("d", [""])[0]
    else:
        inside = urllib.parse.unquote(parts.path.removeprefix("/data/"))
    folder = folder.resolve()
    try:
        path = (folder / inside).resolve()  # follows links: one that leads outside does not help
        inside_it = path.is_relative_to(folder) and path.is_file()
    except (OSError, ValueError):
        inside_it = False
    if not inside_it:
        raise RefsegError("there is no such photograph in the folder of --label-studio; name the one that holds it")
    return path


def brush_region(control: Control, label: str, score: float, mask: Mask, expression: str) -> dict[str, Any]:
    """A mask (H, W) as a result of BrushLabels."""
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]}
    return _region(control, (mask.shape[0], mask.shape[1]), score, value, expression)


def polygon_regions(
    control: Control,
    label: str,
    score: float,
    rings: Iterable[Sequence[int]],
    size: tuple[int, int],
    expression: str,
) -> Iterator[dict[str, Any]]:
    """A mask's outline (`Segmentation.to_polygons`) as results of PolygonLabels, one for each part, corners in %.

    Label Studio's polygons have no holes, so that holes are filled; and few corners are easier to correct, so that
    the outline is simplified: by at most 1.5 pixels, or a 500th of the longer side. Specks below that are left out.
    """
    height, width = size
    for ring in rings:
        corners = np.reshape(np.asarray(ring, float), (-1, 2))
        x, y = corners.T
        if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) <= 0:
            continue  # a hole: those run the other way
        corners = simplify(corners, max(_STAIR, max(size) / 500))
        if len(corners) >= 3:
            points = (corners / (width, height) * 100).round(3).tolist()
            value = {"points": points, "closed": True, "polygonlabels": [label]}
            yield _region(control, size, score, value, expression)


def _region(
    control: Control, size: tuple[int, int], score: float, value: dict[str, Any], expression: str
) -> dict[str, Any]:
    identity = hashlib.sha256(repr((control.name, value)).encode()).hexdigest()[:10]
    return {
        "id": identity,
        "from_name": control.name,
        "to_name": control.photo,
        "type": control.kind,
        "original_height": size[0],
        "original_width": size[1],
        "image_rotation": 0,
        "score": score,
        "value": value,
        "meta": {"text": [expression]},
    }


def encode_brush(mask: Mask) -> list[int]:
    """A mask (H, W) as the bytes of Label Studio's brush: run lengths of its RGBA picture, 255 at the referent.

    32 bits for the number of values, 5 for their size less one, four times 4 for the sizes of lengths less one. Then
    for each run 1 bit that says so, 2 that choose the length's size, the length less one, and the value in 8 bits.
    """
    values = mask.ravel()
    starts = np.flatnonzero(np.diff(values, prepend=~values[:1]))
    lengths = np.diff(starts, append=values.size) * 4  # R, G, B and alpha are the same
    bits = [_bits(values.size * 4, 32), _bits(7, 5), *(_bits(size - 1, 4) for size in _RUN_BITS)]
    for length, value in zip(lengths.tolist(), values[starts].tolist(), strict=True):
        while length > 0:
            part = min(length, _LARGEST_RUN)
            choice = next(number for number, size in enumerate(_RUN_BITS) if part <= 1 << size)
            bits += ["1", _bits(choice, 2), _bits(part - 1, _RUN_BITS[choice]), "1" * 8 if value else "0" * 8]
            length -= part
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)  # Label Studio's own encoder adds a whole byte where none is needed
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _bits(number: int, count: int) -> str:
    return f"{number:0{count}b}"


def simplify(corners: Points, tolerance: float) -> Points:
    """A ring (N, 2) with fewer corners, from whose outline none of those left out is farther than `tolerance`.

    Douglas and Peucker's method, on the two halves between the ring's first corner and the one farthest from it.
    """
    far = int(np.argmax(np.hypot(*(corners - corners[0]).T)))
    closed = np.concatenate([corners, corners[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far]] = True
    spans = [(0, far), (far, len(corners))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        if distances.max() > tolerance:
            middle = first + 1 + int(np.argmax(distances))
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return corners[keep[:-1]]


def _distances(points: Points, start: Points, end: Points) -> npt.NDArray[np.float64]:
    """How far points (N, 2) are from the line between two others."""
    along = end - start
    length = math.hypot(*along)
    if length == 0:
        return np.hypot(*(points - start).T)
    share = np.clip((points - start) @ along / length**2, 0, 1)
    return np.hypot(*(points - (start + share[:, None] * along)).T)
