"""What comes out: the referent's mask, its score, and the forms in which they leave."""

from __future__ import annotations

import colorsys
import io
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from refseg.errors import RefsegError
from refseg.masks import Mask, encode_mask, polygons

Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_PAPER, _INK, _FAINT = (22, 24, 29), (244, 245, 247), (150, 156, 168)
_FILL = 0.38
"""Opacity of the tint."""
_LEGIBLE, _LARGEST = 640, 8192
"""Captioned photographs are enlarged or reduced so that their longer side has between so many pixels."""
_TEXT = (16, 64)
"""The least and the greatest size of the legend's text, in pixels."""
_LINES = 3
"""Lines of the legend that one expression may fill."""
_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The answer to one expression about one photograph."""

    expression: str
    mask: Mask
    """(H, W) bool, H×W as displayed; True at the referent."""
    score: float
    """The IoU to expect, 0..1, if the referent is in the photograph; 0 where the mask is empty. From a checkpoint
    without calibration it is the mean probability inside the mask, which ranks answers and means no more."""
    photo: Image.Image
    """The photograph as displayed, W×H RGB; shared by all answers about it, not copied."""
    unknown_words: tuple[str, ...] = ()
    """Words of the expression that the model has never seen."""
    truncated: bool = False
    """Whether the expression was longer than the model reads."""
    found: bool | None = None
    """Whether the referent is in the photograph at all; None where the checkpoint does not say."""

    def __post_init__(self) -> None:
        size = (self.photo.height, self.photo.width)
        if self.mask.dtype != np.bool_ or self.mask.shape != size:
            raise RefsegError(
                f"the mask is {self.mask.dtype} {self.mask.shape}; give bool {size}, the photograph's height and width"
            )

    def __repr__(self) -> str:
        return f"Segmentation({self.expression!r}, score={self.score:.2f}, box={self.box})"

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """The mask's bounds, xyxy in pixels, right and bottom edge exclusive; None if the mask is empty."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def to_rle(self) -> dict[str, Any]:
        """The mask as compressed COCO run lengths: `size` [H, W] and `counts`, a str."""
        return {"size": list(self.mask.shape), "counts": encode_mask(self.mask)}

    def to_polygons(self) -> list[list[int]]:
        """The mask's outline as COCO-style rings [x, y, x, y, …] along pixel edges, in pixels; see `masks.polygons`."""
        return polygons(self.mask)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the photograph, ready for JSON; `size` is [H, W], `box` xyxy or None."""
        return {
            "expression": self.expression,
            "score": round(self.score, 4),
            "found": self.found,
            "box": self.box and list(self.box),
            "size": list(self.mask.shape),
            "rle": self.to_rle(),
            "unknown_words": list(self.unknown_words),
            "truncated": self.truncated,
        }

    def overlay(self, *, caption: bool = True) -> Image.Image:
        """The photograph with the mask tinted and outlined; see the function `overlay`."""
        return overlay(self.photo, [self], caption=caption)

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes what the suffix asks for and returns the path.

        .png the mask, 0 and 255, H×W · .jpg the overlay · .json `to_dict`. Raises RefsegError for another
        suffix or where the file cannot be written.
        """
        path = Path(path)
        content = io.BytesIO()
        match path.suffix.lower():
            case ".png":
                Image.fromarray(self.mask.astype(np.uint8) * np.uint8(255)).save(content, "PNG")
            case ".jpg" | ".jpeg":
                self.overlay().save(content, "JPEG", quality=92)
            case ".json":
                content.write(json.dumps(self.to_dict(), ensure_ascii=False).encode())
            case _:
                raise RefsegError(f"{path} must end in .png (mask), .jpg (overlay) or .json (run lengths)")
        try:
            path.write_bytes(content.getvalue())
        except (OSError, ValueError) as fault:
            reason = getattr(fault, "strerror", None) or fault
            raise RefsegError(f"{path} cannot be written ({reason}); choose a writable folder") from fault
        return path


def overlay(photo: Image.Image, segmentations: Sequence[Segmentation], *, caption: bool = True) -> Image.Image:
    """The photograph with each mask tinted and outlined in its own colour, RGB.

    With `caption`, a legend of colours, expressions and scores stands below the photograph. To keep it readable,
    a photograph is enlarged to 640 pixels on its longer side, or reduced to 8192, and a narrow one gets margins.
    Without, the picture has the photograph's size.
    """
    longer = max(photo.size)
    scale = min(max(longer, _LEGIBLE), _LARGEST) / longer if caption else 1.0
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    picture = photo.copy() if scale == 1 else photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    line = min(max(2.0, max(size) / 400), 18.0)
    for number, segmentation in enumerate(segmentations):
        _draw_mask(picture, segmentation.mask, _colour(number), line)
    return _with_legend(picture, segmentations) if caption else picture


def _colour(number: int) -> Colour:
    """Hues a golden angle apart, so that any number of them stay distinct."""
    red, green, blue = colorsys.hsv_to_rgb((0.96 + number * 0.381966) % 1, 0.82, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_mask(picture: Image.Image, mask: Mask, colour: Colour, line: float) -> None:
    """Tints and outlines in place; the outline hugs the mask from outside, so that specks are seen too."""
    shape = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if picture.size != shape.size:
        scale = max(picture.size) / max(shape.size)
        shape = shape.resize(picture.size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        if scale > 1:  # smooth what were the steps of single pixels
            shape = shape.filter(ImageFilter.GaussianBlur(scale / 2)).point(_lut((_LEVELS - 127.5) * scale / 64 + 0.5))
    bounds = shape.getbbox()
    if bounds is None:
        return
    margin = math.ceil(line * 4)
    left, top = max(0, bounds[0] - margin), max(0, bounds[1] - margin)
    frame = (left, top, min(picture.width, bounds[2] + margin), min(picture.height, bounds[3] + margin))
    shape = shape.crop(frame)
    picture.paste(colour, frame, shape.point(_lut(_LEVELS / 255 * _FILL)))
    grown = shape.filter(ImageFilter.BoxBlur(math.ceil(line / 2))).point(_lut(_LEVELS))
    # Across a blurred edge the level tells the distance to it, which makes a smooth line of any width.
    blurred = grown.filter(ImageFilter.GaussianBlur(line))
    distance = np.array([abs(NormalDist(0, line).inv_cdf((level + 0.5) / 256)) for level in range(256)])
    for width, shade in ((line * 1.9, (255, 255, 255)), (line, colour)):
        picture.paste(shade, frame, blurred.point(_lut(width / 2 + 0.5 - distance)))


def _lut(coverage: npt.NDArray[np.float64]) -> list[int]:
    """A coverage for each of 256 levels, clipped to 0..1, as `Image.point` takes it."""
    return [int(value) for value in np.rint(np.clip(coverage, 0, 1) * 255)]


def _with_legend(picture: Image.Image, segmentations: Sequence[Segmentation]) -> Image.Image:
    width = max(picture.width, _LEGIBLE // 2)
    unit = min(max(round(math.sqrt(picture.width * picture.height) / 42), _TEXT[0]), _TEXT[1])  # gaps are in proportion
    font = ImageFont.load_default(unit)
    texts = ["not found" if not s.box else f"{s.score:.2f}{'?' if s.found is False else ''}" for s in segmentations]
    score_width = max((font.getlength(text) for text in texts), default=0)
    left, right = round(2.4 * unit), width - unit
    rows = [_wrap(s.expression, font, right - left - score_width - unit) for s in segmentations]
    spacing = round(1.35 * unit)
    height = sum(len(lines) * spacing + unit // 2 for lines in rows) + (unit * 3 // 2 if rows else 0)
    canvas = Image.new("RGB", (width, picture.height + height), _PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    top = picture.height + unit
    for number, (lines, text) in enumerate(zip(rows, texts, strict=True)):
        _draw_swatch(canvas, unit, top, _colour(number))
        draw.text((right, top), text, _FAINT, font, anchor="ra")
        for line in lines:
            draw.text((left, top), line, _INK, font)
            top += spacing
        top += unit // 2
    return canvas


def _draw_swatch(canvas: Image.Image, unit: int, top: int, colour: Colour) -> None:
    """A rounded square of the text's height, drawn four times as large for a smooth edge."""
    shape = Image.new("L", (unit * 4, unit * 4))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, unit * 4 - 1, unit * 4 - 1), unit, fill=255)
    side = round(unit * 0.85)
    shape = shape.resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(colour, (unit, top + round(unit * 0.12)), shape)


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """At most `_LINES` lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        while word and len(lines) <= _LINES:
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:  # wider than a line: broken where it must be
                fits = _fitting(word, font, width)
                lines[-1], word = word[:fits], word[fits:]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][:-1].rstrip() + "…"]
    return lines


def _fitting(word: str, font: Font, width: float) -> int:
    """How many of the word's first characters stay within the width; at least one."""
    return bisect_right(range(2, len(word)), width, key=lambda end: font.getlength(word[:end])) + 1
