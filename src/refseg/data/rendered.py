"""Rendered scenes: coloured shapes in front of stuff, for tests and for training without a download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm

from refseg.errors import RefsegError
from refseg.files import whole
from refseg.masks import Mask, encode_mask

Floats = npt.NDArray[np.float64]
RGB = tuple[int, int, int]

VERSION = 4
"""Goes up whenever the same seed would render other pixels, so that older cached scenes are not used."""

COLOURS: dict[str, RGB] = {
    "black": (20, 20, 22),
    "white": (246, 246, 246),
    "grey": (128, 128, 128),
    "red": (208, 24, 32),
    "orange": (246, 130, 14),
    "yellow": (250, 222, 30),
    "green": (28, 152, 52),
    "blue": (30, 72, 212),
    "purple": (122, 34, 168),
    "pink": (250, 178, 204),
    "brown": (98, 56, 22),
}

STUFF: dict[str, RGB] = {
    "sky": (160, 202, 242),
    "sea": (38, 104, 160),
    "sand": (226, 204, 152),
    "grass": (104, 164, 70),
    "snow": (232, 238, 246),
    "road": (92, 92, 98),
    "wall": (214, 204, 190),
    "floor": (164, 122, 82),
    "curtain": (150, 44, 58),
    "table": (186, 148, 104),
}

_STACKED = (
    ("sky", "grass"),
    ("sky", "sea"),
    ("sky", "sea", "sand"),
    ("sky", "road"),
    ("sky", "snow"),
    ("wall", "floor"),
)
_BESIDE = (("curtain", "wall"), ("wall", "curtain"), ("grass", "road"), ("sea", "sand"))
_PLAIN = (("wall",), ("table",), ("sand",))

_SIDES = ((160, 160), (128, 160), (160, 128))
_RADII = (0.13, 0.2, 0.3)
"""Small, medium and large, as shares of the longer side. They differ by more than the jitter."""

_MARKS_PER_SIDE = 11
"""How many stripes of a marking would fit into the longer side."""
_MARKED = 0.35
"""Share of a stripe that is marked. It is less than half of any shape, so that the shape keeps its colour."""

_LEAST_VISIBLE = 0.65
"""The share of a shape that must be visible to recognise it by its outline."""

_LEAST_CONTRAST = 90.0
"""Euclidean RGB distance below which a shape could not be seen against the background."""


@dataclass(frozen=True)
class _Shape:
    label: str
    colour: str
    rgb: Floats
    """The colour with the marking, (n, n, 3) in about 0..255."""
    coverage: Floats
    """The share of each pixel that the shape covers, (n, n) in 0..1."""


@dataclass
class _Placed:
    shape: _Shape
    full: int
    """How many pixels the whole shape has, before anything hides it."""
    visible: Mask


@dataclass(frozen=True)
class _Scene:
    pixels: npt.NDArray[np.uint8]
    segments: list[tuple[str, Mask]]
    """Labels and visible masks (H, W), stuff first. The masks do not overlap."""


def render(folder: Path, count: int, seed: int = 0) -> Path:
    """Draws `count` scenes and returns the path of `folder/instances.json`.

    Photographs are `folder/images/*.png`, RGB, longer side 160. The annotations follow COCO: compressed
    RLE, xywh boxes, categories with `isthing`; each mask is what is visible of its shape or region.
    Scene i depends only on `seed` and i, not on `count`, so unseen scenes need another seed.
    The folder appears complete or not at all.
    Raises RefsegError if a number is out of range, or if the folder is in use or cannot be written.
    """
    if count < 1 or seed < 0:
        raise RefsegError(f"{count} scenes with seed {seed} cannot be drawn; give a count from 1 and a seed from 0")
    try:
        with whole(folder) as unfinished:
            (unfinished / "images").mkdir(parents=True)
            _write(unfinished, count, seed)
    except OSError as fault:
        raise RefsegError(
            f"scenes cannot be written to {folder} ({fault.strerror}); name a new folder in a writable place"
        ) from fault
    return folder / "instances.json"


def _write(folder: Path, count: int, seed: int) -> None:
    category = {label: number for number, label in enumerate([*_OUTLINES, *STUFF], start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(count), desc="scenes", unit="scene", disable=None):
        scene = _scene(np.random.default_rng([seed, index]))
        height, width = scene.pixels.shape[:2]
        name = f"{index:06d}.png"
        Image.fromarray(scene.pixels).save(folder / "images" / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for label, mask in scene.segments:
            annotation = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": category[label]}
            annotations.append(annotation | _segment(mask))
    categories = [
        {
            "id": number,
            "name": label,
            "supercategory": "shape" if label in _OUTLINES else "background",
            "isthing": int(label in _OUTLINES),
        }
        for label, number in category.items()
    ]
    document = {
        "info": {"description": f"rendered scenes, version {VERSION}, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "instances.json").write_text(json.dumps(document), encoding="utf-8")


def _segment(mask: Mask) -> dict[str, Any]:
    height, width = mask.shape
    rle = {"size": [height, width], "counts": encode_mask(mask)}
    box = [float(edge) for edge in coco_mask.toBbox(rle)]
    return {"segmentation": rle, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}


def _scene(rng: np.random.Generator) -> _Scene:
    height, width = _SIDES[rng.integers(len(_SIDES))]
    labels, regions = _regions(rng, height, width)
    pixels = _background(rng, labels, regions)
    placed: list[_Placed] = []
    # From large to small, because later shapes are in front.
    for shape in sorted(_shapes(rng, labels, max(height, width)), key=lambda shape: -len(shape.coverage)):
        _place(rng, shape, placed, pixels)
    shown = np.zeros((height, width), dtype=bool)
    for each in placed:
        shown |= each.visible
    stuff = [(label, (regions == number) & ~shown) for number, label in enumerate(labels)]
    segments = [(label, mask) for label, mask in stuff if mask.mean() >= 0.02]
    segments += [(each.shape.label, each.visible) for each in placed]
    return _Scene(pixels.clip(0, 255).round().astype(np.uint8), segments)


def _regions(rng: np.random.Generator, height: int, width: int) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Labels of the stuff and, for each pixel, the number of its label, (H, W)."""
    layouts = (_STACKED, _STACKED, _BESIDE, _PLAIN)[rng.integers(4)]
    labels = layouts[rng.integers(len(layouts))]
    down, right = np.mgrid[0:height, 0:width] / (np.array([height, width]).reshape(2, 1, 1) - 1)
    across, along = (right, down) if layouts is _BESIDE else (down, right)
    regions = np.zeros((height, width), dtype=np.int64)
    slope, wave, phase = rng.uniform(-0.12, 0.12), rng.uniform(0.0, 0.03), rng.uniform(0.0, 6.0)
    for border in range(1, len(labels)):
        level = border / len(labels) + rng.uniform(-0.1, 0.1)
        regions += across > level + slope * (along - 0.5) + wave * np.sin(phase + 7.0 * along)
    return labels, regions


def _background(rng: np.random.Generator, labels: tuple[str, ...], regions: npt.NDArray[np.int64]) -> Floats:
    """Stuff colours with a soft mottling, (H, W, 3) in about 0..255."""
    height, width = regions.shape
    palette = np.array([STUFF[label] for label in labels], dtype=float)
    palette += rng.uniform(-8, 8, palette.shape)
    coarse = rng.uniform(-1, 1, (rng.integers(3, 12), rng.integers(3, 12))).astype(np.float32)
    mottle = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    pixels: Floats = palette[regions] + rng.uniform(0, 14) * mottle[..., None]
    return pixels


def _shapes(rng: np.random.Generator, background: tuple[str, ...], side: int) -> Iterator[_Shape]:
    """2 to 5 shapes.

    Labels repeat in most scenes and colours in many, so that neither is enough to identify a shape."""
    ground = np.array([STUFF[label] for label in background], dtype=float)
    allowed = [
        name for name, rgb in COLOURS.items() if np.linalg.norm(ground - np.array(rgb), axis=1).min() >= _LEAST_CONTRAST
    ]
    labels: list[str] = []
    colours: list[str] = []
    for _ in range(rng.integers(2, 6)):
        labels.append(_again_or_new(rng, labels, list(_OUTLINES), again=0.5))
        colours.append(_again_or_new(rng, colours, allowed, again=0.25))
        radius = side * _RADII[rng.integers(len(_RADII))] * rng.uniform(0.92, 1.08)
        rgb = np.array(COLOURS[colours[-1]], dtype=float) + rng.uniform(-6, 6)
        coverage = _coverage(rng, labels[-1], radius)
        yield _Shape(labels[-1], colours[-1], _marked(rng, labels[-1], rgb, len(coverage), side), coverage)


def _again_or_new(rng: np.random.Generator, used: list[str], names: list[str], again: float) -> str:
    pool = used if used and rng.random() < again else names
    return pool[rng.integers(len(pool))]


def _place(rng: np.random.Generator, shape: _Shape, placed: list[_Placed], pixels: Floats) -> None:
    """Draws the shape in front of the others if all stay recognisable. Otherwise leaves it out.

    Changes `pixels` and the visible masks of `placed`, and appends to `placed`."""
    height, width = pixels.shape[:2]
    n = len(shape.coverage)
    spill = n // 8
    for _ in range(100):
        top, left = (int(rng.integers(-spill, side - n + spill + 1)) for side in (height, width))
        rows, columns = slice(max(top, 0), min(top + n, height)), slice(max(left, 0), min(left + n, width))
        coverage = shape.coverage[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = coverage >= 0.5
        full = int((shape.coverage >= 0.5).sum())
        if mask.sum() < _LEAST_VISIBLE * full or not all(_tolerates(each, shape, mask) for each in placed):
            continue
        for each in placed:
            each.visible &= ~mask
        placed.append(_Placed(shape, full, mask))
        patch = pixels[rows, columns]
        rgb = shape.rgb[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        patch += coverage[..., None] * (rgb - patch)
        return


def _tolerates(behind: _Placed, shape: _Shape, mask: Mask) -> bool:
    left = int((behind.visible & ~mask).sum())
    hidden = int(behind.visible.sum()) - left
    # Two overlapping shapes of one colour would look like one.
    return left >= _LEAST_VISIBLE * behind.full and not (hidden and behind.shape.colour == shape.colour)


def _marked(rng: np.random.Generator, label: str, rgb: Floats, n: int, side: int) -> Floats:
    """The colour with the marking of its kind in another shade, (n, n, 3)."""
    down, right = np.mgrid[0:n, 0:n] / (side / _MARKS_PER_SIDE) + rng.uniform(0, 1, 2).reshape(2, 1, 1)
    marked = _MARKINGS[label](down % 1, right % 1, *np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j])
    return np.where(marked[..., None], _shade(rgb), rgb)


def _shade(rgb: Floats) -> Floats:
    """A darker shade that fits no other colour's name. Black has none, and a much darker white would be grey."""
    if rgb.max() <= 60:
        return rgb + 60
    return rgb * (0.73 if rgb.min() > 230 else 0.55)


def _coverage(rng: np.random.Generator, label: str, radius: float) -> Floats:
    """The share of each pixel inside the outline, (n, n) in 0..1, filled at four times the size and averaged."""
    n = 2 * int(np.ceil(radius)) + 2
    angle = np.radians(rng.uniform(-12, 12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (_OUTLINES[label]() @ turn * radius + n / 2) * 4
    canvas = Image.new("L", (4 * n, 4 * n))
    draw = ImageDraw.Draw(canvas)
    draw.polygon([(x, y) for x, y in points], fill=255)
    if label == "ring":
        hole = 4 * 0.55 * radius
        draw.ellipse((2 * n - hole, 2 * n - hole, 2 * n + hole, 2 * n + hole), fill=0)
    return np.asarray(canvas.reduce(4), dtype=float) / 255


def _arc(start: float, stop: float, radius: float = 1.0, points: int = 48) -> Floats:
    """Points (K, 2) as x, y with y down; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, points))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle() -> Floats:
    return _arc(0, 360)


def _square() -> Floats:
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.8


def _triangle() -> Floats:
    return _arc(-90, 270, points=4)


def _star() -> Floats:
    return _arc(-90, 270, points=11) * np.where(np.arange(11) % 2, 0.48, 1.0)[:, None]


def _heart() -> Floats:
    t = np.linspace(0, 2 * np.pi, 64)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 17


def _cross() -> Floats:
    arm = 0.36
    quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
    turns = [np.array([(1, 0), (0, 1)]), np.array([(0, 1), (-1, 0)]), -np.eye(2), np.array([(0, -1), (1, 0)])]
    return np.concatenate([quarter @ turn for turn in turns])


_OUTLINES: dict[str, Callable[[], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _circle,
    "cross": _cross,
}

# Each kind has its texture, as real things do: a network learns textures long before outlines.
# Whether a pixel is marked, (n, n), by its position within its horizontal and its vertical stripe (0..1) and within
# the shape (-1..1), each (n, n).
_MARKINGS: dict[str, Callable[[Floats, Floats, Floats, Floats], Mask]] = {
    "circle": lambda down, right, y, x: down < 0,
    "square": lambda down, right, y, x: down < _MARKED,
    "triangle": lambda down, right, y, x: right < _MARKED,
    "star": lambda down, right, y, x: np.hypot(x, y) < 0.36,
    "heart": lambda down, right, y, x: (down + right) % 1 < _MARKED,
    "ring": lambda down, right, y, x: np.arctan2(y, x) * 5 / np.pi % 1 < _MARKED,
    "cross": lambda down, right, y, x: (down < 0.55) & (right < 0.55),
}
