"""The paper's figures at the width of a column: answers side by side (4 to 6), and attention in SFM (7)."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from refseg.errors import RefsegError
from refseg.evaluation.plots import new_figure
from refseg.masks import Mask
from refseg.segmentation import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 9.0
"""Width of a paper's column and height of its page, in inches. A figure has this width, and at most this height."""
SUFFIXES = (".png", ".svg")
FONT, SMALL = 7.0, 6.0
"""Sizes of sentences and titles, and of a matrix's words, in points. Less than 6 cannot be read in print."""

Shares = npt.NDArray[np.floating[Any]]

_DPI = 600
_GAP, _PAD = 0.05, 0.07
_LEADING = 1.2
_NARROWEST = 0.5
_CELL = 0.1
_ANSWER, _TRUTH, _INK = "#e3175c", "#0072d6", "#1d2330"


def compare(answers: Mapping[str, Sequence[Segmentation]], truths: Sequence[Mask] | None = None) -> Figure:
    """Models side by side, with a row for each sentence and the sentence below it (figures 4 and 5).

    `answers` has each model's answers under its name, about the same photographs and sentences in the same order. The
    first column shows `truths`, the true masks (H, W) bool in that order, or the photographs if there are none. Raises
    RefsegError if a mask does not have its photograph's size, or if there are too many models or sentences for a page.
    """
    sheet = _Sheet(1 + len(answers))
    names = [_lines(name, sheet.width) for name in ("photograph" if truths is None else "true mask", *answers)]
    sheet.skip_lines(max(map(len, names)))
    for number, row in enumerate(zip(*answers.values(), strict=True)):
        photo, expression = row[0].photo, row[0].expression
        panels = [sheet.panel(column, photo) for column in range(sheet.columns)]
        if truths is None:
            _show_photo(panels[0], photo)
        else:
            _show_answer(panels[0], Segmentation(expression, truths[number], 1.0, photo), _TRUTH)
        for axes, answer in zip(panels[1:], row, strict=True):
            _show_answer(axes, answer)
        if number == 0:
            for axes, name in zip(panels, names, strict=True):
                _title(axes, name)
        sentence = _lines(expression, COLUMN)
        _label(panels[0], sentence, x=COLUMN / 2 / sheet.width)
        sheet.skip(sheet.height(photo))
        sheet.skip_lines(len(sentence))
    return sheet.finish()


def anchor(answers: Sequence[Segmentation]) -> Figure:
    """One photograph, and what each sentence finds in it, with the sentence below (figure 6).

    Raises RefsegError if there are too many sentences for a page.
    """
    photo = answers[0].photo
    sheet = _Sheet(_columns(1 + len(answers), 3 if photo.width >= photo.height else 4))
    shown: list[Segmentation | None] = [None, *answers]
    for start in range(0, len(shown), sheet.columns):
        highest = 0
        for column, answer in enumerate(shown[start : start + sheet.columns]):
            axes = sheet.panel(column, photo)
            if answer is None:
                _show_photo(axes, photo)
            else:
                _show_answer(axes, answer)
            text = _lines("photograph" if answer is None else answer.expression, sheet.width)
            _label(axes, text)
            highest = max(highest, len(text))
        sheet.skip(sheet.height(photo))
        sheet.skip_lines(highest)
    return sheet.finish()


def attention(answer: Segmentation, words: Sequence[str], shares: Shares) -> Figure:
    """What attends to what in one layer of SFM (figure 7).

    `words` and `shares` (hw+T, hw+T), h = w, are those of one level and layer of `Segmenter.attention`. The figure has
    the answer and three panels. Pixel–pixel is the mean of what each place receives from all places. Word–word has a
    row for each word, with what it takes from each word. Word–pixel is what each word takes from each place. Each map
    and the matrix run from 0 to their own highest share. Raises RefsegError if there are too many words for a page.
    """
    hw = len(shares) - len(words)
    side = math.isqrt(hw)
    maps = shares[:, :hw].reshape(-1, side, side)
    names = [word if len(word) <= 14 else word[:13] + "…" for word in words]
    sheet = _Sheet(3)
    _place_whole(sheet, answer, names, maps[:hw].mean(axis=0), shares[hw:, hw:])
    sheet.columns = max(3, _columns(len(words), 5))
    for number, (name, shares_of_word) in enumerate(zip(names, maps[hw:], strict=True)):
        axes = sheet.panel(number % sheet.columns, answer.photo)
        _show_heat(axes, answer.photo, shares_of_word)
        _label(axes, [name])
        if number == 0:
            across = min(len(words), sheet.columns) * (sheet.width + _GAP) - _GAP
            _title(axes, ["word–pixel"], x=across / 2 / sheet.width)
        if (number + 1) % sheet.columns == 0 or number + 1 == len(words):
            sheet.skip(sheet.height(answer.photo))
            sheet.skip_lines(1)
    return sheet.finish()


def _place_whole(sheet: _Sheet, answer: Segmentation, names: Sequence[str], received: Shares, matrix: Shares) -> None:
    """The answer, the pixels' map and the words' matrix in one row. With many words, the matrix is below."""
    height, margin = sheet.height(answer.photo), max(_measure(name, SMALL) for name in names) + 0.05
    edge, left = min(sheet.width - margin, 4 * _CELL * len(names)), 2 * (sheet.width + _GAP) + margin
    below = edge < _CELL * len(names)
    if below:
        sheet.columns = 2
        height = sheet.height(answer.photo)
    sheet.skip_lines(1)
    found, pixels = sheet.panel(0, answer.photo), sheet.panel(1, answer.photo)
    _show_answer(found, answer)
    _title(found, ["answer"])
    _show_heat(pixels, answer.photo, received)
    _title(pixels, ["pixel–pixel"])
    if below:
        sheet.skip(height + _PAD)
        sheet.skip_lines(1)
        edge = min(COLUMN - margin, 1.2 * _CELL * len(names))
        height, left = 0.0, (COLUMN + margin - edge) / 2
    axes = sheet.axes(left, edge, edge)
    _show_matrix(axes, names, matrix)
    _title(axes, ["word–word"])
    sheet.skip(max(height, edge + margin) + _PAD)
    sheet.skip_lines(1)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 600 dots per inch, or an SVG, by the suffix. Raises RefsegError if it cannot be written."""
    import matplotlib

    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise RefsegError(f"{path} must end in .png or .svg")
    # Print needs photographs of 300 dots per inch; text and outlines of an SVG have no dots. Without a date, the same
    # figure is the same file.
    options: dict[str, Any] = {"dpi": 300, "metadata": {"Date": None}} if suffix == ".svg" else {"dpi": _DPI}
    try:
        with matplotlib.rc_context({"svg.hashsalt": "refseg"}), _any_script():
            figure.savefig(path, **options)
    except OSError as fault:
        raise RefsegError(f"{path} cannot be written ({fault.strerror or fault}); choose a writable folder") from fault


# ---------------------------------------------------------------- the sheet


class _Sheet:
    """A column that is filled from top to bottom with rows of equally wide panels. Lengths are inches."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        if self.width < _NARROWEST:
            raise RefsegError(f"{columns} panels do not fit beside each other into a column; compare fewer models")
        self.figure = new_figure(figsize=(COLUMN, PAGE))
        self.top = 0.0

    @property
    def width(self) -> float:
        """A panel's."""
        return (COLUMN - _GAP * (self.columns - 1)) / self.columns

    def height(self, photo: Image.Image) -> float:
        """A panel's, with the photograph in it."""
        return self.width * photo.height / photo.width

    def panel(self, column: int, photo: Image.Image) -> Axes:
        """Axes for the photograph in the row that is being filled. `skip` ends the row."""
        return self.axes(column * (self.width + _GAP), self.width, self.height(photo))

    def axes(self, left: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes(
            (left / COLUMN, 1 - (self.top + height) / PAGE, width / COLUMN, height / PAGE), xticks=[], yticks=[]
        )
        axes.spines[:].set_visible(False)
        return axes

    def skip(self, height: float) -> None:
        self.top += height

    def skip_lines(self, count: int) -> None:
        self.top += count * FONT * _LEADING / 72 + _PAD

    def finish(self) -> Figure:
        """The figure, cut below its last row. Raises RefsegError if it is higher than a page."""
        if self.top > PAGE:
            raise RefsegError(
                f"the figure would be {self.top:.0f} inches high and a page has {PAGE:.0f}; "
                "give fewer sentences, or a less tall photograph"
            )
        for axes in self.figure.axes:
            left, bottom, width, height = axes.get_position().bounds
            axes.set_position((left, 1 - (1 - bottom) * PAGE / self.top, width, height * PAGE / self.top))
        self.figure.set_size_inches(COLUMN, self.top)
        return self.figure


def _columns(count: int, most: int) -> int:
    """How many of `count` panels are in a row, so that all rows are equally full."""
    return math.ceil(count / math.ceil(count / most))


# ---------------------------------------------------------------- the content of a panel


def _show_photo(axes: Axes, photo: Image.Image, faded: bool = False) -> None:
    """Draws the photograph no finer than print, in axes of its own pixels. `faded` makes it light grey."""
    small = photo.copy()
    small.thumbnail((round(axes.get_position().width * COLUMN * _DPI), photo.height), Image.Resampling.LANCZOS)
    if faded:
        small = Image.blend(ImageOps.grayscale(small), Image.new("L", small.size, 255), 0.35).convert("RGB")
    axes.imshow(np.asarray(small), extent=(0, photo.width, photo.height, 0), aspect="auto")


def _show_answer(axes: Axes, answer: Segmentation, colour: str = _ANSWER) -> None:
    """Draws the photograph with its mask tinted. The outline is in colour on white, visible on any photograph."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    _show_photo(axes, answer.photo)
    rings = [np.reshape(ring, (-1, 2)) for ring in answer.to_polygons()]
    if not rings:
        box = {"facecolor": _INK, "edgecolor": "none", "alpha": 0.75, "pad": 2}
        middle = (answer.photo.width / 2, answer.photo.height / 2)
        axes.text(*middle, "nothing", fontsize=SMALL, color="white", bbox=box, ha="center", va="center")
        return
    outline = Outline.make_compound_path(*(Outline(np.vstack([ring, ring[:1]]), closed=True) for ring in rings))
    axes.add_patch(PathPatch(outline, facecolor=colour, edgecolor="none", alpha=0.38))
    for shade, width in (("white", 1.3), (colour, 0.7)):
        axes.add_patch(PathPatch(outline, facecolor="none", edgecolor=shade, linewidth=width, joinstyle="round"))


def _show_heat(axes: Axes, photo: Image.Image, shares: Shares) -> None:
    """Draws a map (h, w) over the faded photograph, which shows wherever nothing is attended to."""
    from matplotlib import colormaps

    _show_photo(axes, photo, faded=True)
    strength = Image.fromarray((shares / max(float(shares.max()), 1e-12)).astype(np.float32))
    smooth = np.asarray(strength.resize((256, 256), Image.Resampling.BILINEAR))
    heat = colormaps["YlOrRd"](0.3 + 0.7 * smooth)
    heat[..., 3] = 0.9 * smooth**0.75
    axes.imshow(heat, extent=(0, photo.width, photo.height, 0), aspect="auto")


def _show_matrix(axes: Axes, words: Sequence[str], shares: Shares) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, aspect="auto")
    axes.set_xticks(range(len(words)), words, rotation=90, fontsize=SMALL, color=_INK, parse_math=False)
    axes.set_yticks(range(len(words)), words, fontsize=SMALL, color=_INK, parse_math=False)
    axes.tick_params(length=0, pad=2)


def _title(axes: Axes, lines: Sequence[str], x: float = 0.5) -> None:
    """Writes lines above the axes. `x` is their centre, as a share of the width."""
    _write(axes, lines, x, 1.0, FONT * (0.6 + _LEADING * (len(lines) - 1)))


def _label(axes: Axes, lines: Sequence[str], x: float = 0.5) -> None:
    """Writes lines below the axes. `x` is as for a title."""
    _write(axes, lines, x, 0.0, -FONT * _LEADING)


def _write(axes: Axes, lines: Sequence[str], x: float, y: float, above: float) -> None:
    """Writes lines from (x, y), in shares of the axes. The first line's baseline is `above` it by so many points."""
    for number, line in enumerate(lines):
        axes.annotate(
            line,
            (x, y),
            xytext=(0, above - number * FONT * _LEADING),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=FONT,
            color=_INK,
            parse_math=False,  # a dollar sign is a dollar sign
        )


# ---------------------------------------------------------------- text


def _lines(text: str, width: float) -> list[str]:
    """The text in as few lines as possible, none wider than `width` inches."""
    whole = _measure(text, FONT)
    for characters in range(min(len(text), int(2 * len(text) * width / whole) + 1), 1, -1):
        lines = textwrap.wrap(text, characters)
        if all(_measure(line, FONT) <= width for line in lines):
            return lines
    return list(text)


def _measure(text: str, size: float) -> float:
    """The width of the text, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with _any_script():
        return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72


@contextmanager
def _any_script() -> Iterator[None]:
    """Silences matplotlib's warning, which names its own code. A sign that the font lacks is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        yield
