"""The report card: what a model can and cannot do, as one figure and one sheet of photographs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from refseg.data.table import Row
from refseg.evaluation.plots import INK, draw_bars, draw_precision, draw_reliability, subplots
from refseg.evaluation.report import Report, Scored
from refseg.evaluation.scores import Scores
from refseg.segmentation import Segmentation, overlay
from refseg.segmenter import Segmenter

_COLUMNS = 4
_TILE, _GAP, _LINE = 300, 18, 27
_PAPER, _TEXT, _DIM = (250, 250, 252), (29, 35, 48), (110, 118, 133)


def write_card(report: Report, segmenter: Segmenter, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes report.json, card.png and contact.jpg into the folder and returns their paths.

    `rows` are those that were evaluated. Raises RefsegError if matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("report.json", "card.png", "contact.jpg")]
    paths[0].write_text(report.to_json() + "\n", encoding="utf-8")
    plot_card(report, paths[1])
    contact_sheet(report, segmenter, rows).save(paths[2], quality=90)
    return paths


def plot_card(report: Report, path: Path) -> None:
    """Draws IoU by kind of expression and size of referent, precision, and what the score is worth, as PNG or SVG."""
    figure, ((kinds, sizes), (precision, score)) = subplots(2, 2, (12, 9))
    groups = report.scores
    draw_bars(kinds, groups.get("kind", groups["all"]), "IoU by kind of expression")
    draw_bars(sizes, groups["size"], "IoU by the referent's share of the photograph")
    draw_precision(precision, groups)
    scored = [answer for answer in report.answers if answer.score is not None]
    if scored:
        ious = [Scores(report.protocol).iou(answer.pixels) for answer in scored]
        draw_reliability(score, [answer.score or 0.0 for answer in scored], ious)
    else:
        score.text(0.5, 0.5, "no scores: this protocol decides\nthe mask logits by itself", ha="center", color=INK)
        score.set_axis_off()
    threshold = "the segmenter's threshold" if report.threshold is None else f"threshold {report.threshold:g}"
    figure.suptitle(
        f"{report.model or 'unnamed model'} · {', '.join(report.splits) or 'unnamed data'}\nprotocol "
        f"{report.protocol.name} · {threshold} · {report.photographs} photographs, {report.overall.count} expressions",
        fontsize=12,
        color=INK,
    )
    figure.savefig(path, dpi=130)


# ---------------------------------------------------------------- the sheet of photographs


def contact_sheet(report: Report, segmenter: Segmenter, rows: Sequence[Row], each: int = _COLUMNS) -> Image.Image:
    """The best, the middle and the worst answers as an RGB image, `each` of them, all of different photographs.

    A tile shows what was meant and what was answered, side by side. Of equal answers, the most confident come first
    among the worst.
    """
    sections = [(title, chosen) for title, chosen in _choose(report, each) if chosen]
    tiles = [[_tile(report, segmenter, rows[a.row], a) for a in chosen] for _, chosen in sections]
    width = _GAP + each * (2 * _TILE + _GAP)
    heading = 2 * _LINE
    heights = [max(tile.height for tile in tiles_of_row) for tiles_of_row in tiles]
    sheet = Image.new("RGB", (width, sum(heights) + len(tiles) * (heading + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for (title, _), tiles_of_row, height in zip(sections, tiles, heights, strict=True):
        draw.text((_GAP, top), title, _TEXT, ImageFont.load_default(30))
        top += heading
        for number, tile in enumerate(tiles_of_row):
            sheet.paste(tile, (_GAP + number * (2 * _TILE + _GAP), top))
        top += height + _GAP
    return sheet


def _choose(report: Report, each: int) -> list[tuple[str, list[Scored]]]:
    scores = Scores(report.protocol)
    known = [(scores.iou(answer.pixels), answer) for answer in report.answers]
    ranked = sorted((pair for pair in known if pair[0] == pair[0]), key=lambda p: (-p[0], p[1].score or 0.0, p[1].row))
    answers = [answer for _, answer in ranked]
    half = len(answers) // 2
    around = sorted(range(len(answers)), key=lambda place: abs(place - half))
    taken: set[str] = set()
    middle = [answers[place] for place in around]
    sections = (("The best", answers), ("The worst, the most confident first", answers[::-1]), ("The middle", middle))
    best, worst, between = (_one_each(candidates, each, taken) for _, candidates in sections)
    return [("The best", best), ("The middle", between), (sections[1][0], worst)]


def _one_each(answers: Sequence[Scored], count: int, taken: set[str]) -> list[Scored]:
    """The first answers about photographs that are not `taken` yet."""
    chosen: list[Scored] = []
    for answer in answers:
        if len(chosen) == count:
            break
        if answer.photograph not in taken:
            taken.add(answer.photograph)
            chosen.append(answer)
    return chosen


def _tile(report: Report, segmenter: Segmenter, row: Row, answer: Scored) -> Image.Image:
    """A tile: what was meant, what was answered, and the sentence below."""
    encoded = segmenter.encode(row.image)
    (found,) = segmenter.segment(encoded, [row.expression])
    meant = Segmentation(row.expression, row.mask(), 1.0, found.photo)
    # The empty first mask takes the overlay's first colour, so that the target gets the second.
    nothing = Segmentation("", np.zeros_like(meant.mask), 0.0, found.photo)
    pictures = [overlay(found.photo, [nothing, meant], caption=False), overlay(found.photo, [found], caption=False)]
    height = min(max(1, round(_TILE * row.height / row.width)), _TILE * 4 // 3)
    tile = Image.new("RGB", (2 * _TILE, height + 4 * _LINE), _PAPER)
    for number, picture in enumerate(pictures):
        scale = min(_TILE / picture.width, height / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        left = number * (_TILE + 2) + (_TILE - 2 - size[0]) // 2
        tile.paste(picture.resize(size, Image.Resampling.LANCZOS), (max(left, 0), (height - size[1]) // 2))
    draw = ImageDraw.Draw(tile)
    top = height + _LINE // 3
    for line in textwrap.wrap(row.expression, 52, max_lines=2, placeholder=" …"):
        draw.text((0, top), line, _TEXT, ImageFont.load_default(22))
        top += _LINE
    iou = Scores(report.protocol).iou(answer.pixels)
    draw.text((0, top), "meant", _DIM, ImageFont.load_default(18))
    draw.text((_TILE + 2, top), f"answered: IoU {iou:.2f}, score {found.score:.2f}", _DIM, ImageFont.load_default(18))
    return tile
