"""Scores a segmenter on expressions: overall, and by data set, kind of expression and siblings."""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from refseg.data.table import Row, by_photograph
from refseg.errors import RefsegError
from refseg.metrics import NATIVE, Protocol, Scores

logger = logging.getLogger(__name__)

_CHUNK = 32
"""Expressions answered at once; bounds the memory that full-size probabilities take."""

WITH_SIBLING, WITHOUT_SIBLING = "with a sibling", "without"


class Answer(typing.Protocol):
    """What scoring needs of a `Segmentation`."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) bool at the photograph's own size."""


class Answers(typing.Protocol):
    """What scoring needs of a `Segmenter`; a yardstick or another model may stand in for it."""

    def encode(self, photo: Any, /) -> Any:
        """Raises RefsegError for a photograph that cannot be read."""

    def segment(self, encoded: Any, expressions: list[str], /) -> Sequence[Answer]:
        """One answer per expression, in order."""


@dataclass
class Report:
    """The scores of one model on one data set, with all that is needed to repeat them."""

    model: str
    data: str
    protocol: Protocol
    image_size: int | None
    """Side of the square network input; None where the segmenter does not say."""
    threshold: float | None
    """The probability at which the segmenter decided; None where it does not say."""
    version: str
    """The version of refseg."""
    photographs: int = 0
    """Photographs scored."""
    skipped: int = 0
    """Expressions not scored because of their photograph."""
    problems: list[str] = field(default_factory=list)
    """One sentence per skipped photograph."""
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """Per group ("all", "set", "kind", "siblings") and per member of it."""

    @property
    def overall(self) -> Scores:
        """The scores of all expressions together; without any, its numbers are NaN."""
        return self.scores.get("all", {}).get("all", Scores(self.protocol))

    def add(self, row: Row, mask: npt.NDArray[np.bool_]) -> None:
        """Scores one answer (H, W) bool in every group that its row belongs to."""
        target = row.mask()
        members = {
            "all": "all",
            "set": row.split or self.data,
            "kind": row.kind,
            "siblings": WITH_SIBLING if row.siblings else WITHOUT_SIBLING,
        }
        for group, member in members.items():
            if member:
                own = self.scores.setdefault(group, {})
                own.setdefault(member, Scores(self.protocol)).add(mask, target)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; shares in 0..1."""
        return {
            "model": self.model,
            "data": self.data,
            "protocol": self.protocol.name,
            "image_size": self.image_size,
            "threshold": self.threshold,
            "version": self.version,
            "photographs": self.photographs,
            "expressions": self.overall.count,
            "skipped": self.skipped,
            "problems": list(self.problems),
            "scores": {
                group: {member: _numbers(scores) for member, scores in self._members(group)} for group in self.scores
            },
        }

    def to_text(self) -> str:
        """A table for people, in percent; its first lines say what was measured and how."""
        lines = [
            f"model {self.model or 'unnamed'} · data {self.data or 'unnamed'} · refseg {self.version}",
            f"protocol {self.protocol.name}: masks scored at {self.protocol.scored_at}, {self._decision()}"
            f" · network input {self.image_size or 'unknown'}",
            f"{self.photographs} photographs, {self.overall.count} expressions, {self.skipped} skipped",
            "",
        ]
        header = ["", f"% ({self.protocol.name})"]
        header += ["overall IoU", "mean IoU", "P@0.5", "P@0.7", "P@0.9", "empty", "expressions"]
        table = [header]
        for group in ("all", "set", "kind", "siblings"):
            for member, scores in self._members(group):
                table.append(["" if group == "all" else group, member, *_cells(scores)])
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        for line in table:
            names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
            cells = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            lines.append("  ".join(names + cells).rstrip())
        return "\n".join(lines)

    def _members(self, group: str) -> list[tuple[str, Scores]]:
        return sorted(self.scores.get(group, {}).items())

    def _decision(self) -> str:
        if self.threshold is None:
            return "decided by the segmenter"
        if self.threshold == self.protocol.threshold:
            return f"decided at {self.threshold:g}"
        return f"decided at {self.threshold:g} where the protocol says {self.protocol.threshold:g}"


def evaluate(
    segmenter: Answers,
    rows: Iterable[Row],
    progress: bool = True,
    max_photos: int | None = None,
    *,
    model: str = "",
    data: str = "",
    protocol: Protocol = NATIVE,
) -> Report:
    """Answers every row and scores the answers.

    `model` and `data` are names for the report; `data` also names the set of rows that have no split.
    `max_photos` takes that many photographs, evenly spread over all of them. A photograph that cannot be
    read, or is not as large as its rows say, is logged and skipped, and its expressions count as skipped.
    Raises RefsegError if there are no rows or not one photograph could be scored.
    """
    photographs = _spread(list(by_photograph(rows)), max_photos)
    report = Report(
        model,
        data,
        protocol,
        getattr(segmenter, "image_size", None),
        getattr(segmenter, "threshold", None),
        version("refseg"),
    )
    for photo_rows in tqdm(photographs, desc="photographs", unit="photo", disable=None if progress else True):
        try:
            masks = _masks(segmenter, photo_rows)
        except RefsegError as fault:
            logger.warning("skipped: %s", fault)
            report.problems.append(str(fault))
            report.skipped += len(photo_rows)
            continue
        for row, mask in zip(photo_rows, masks, strict=True):
            report.add(row, mask)
        report.photographs += 1
    if not report.photographs:
        raise RefsegError(f"not one of {len(photographs)} photographs could be scored; {report.problems[0]}")
    return report


def _spread(photographs: list[list[Row]], max_photos: int | None) -> list[list[Row]]:
    if not photographs:
        raise RefsegError("there are no expressions to evaluate; give data that has some")
    if max_photos is None or max_photos >= len(photographs):
        return photographs
    if max_photos < 1:
        raise RefsegError(f"{max_photos} photographs cannot be scored; give at least 1")
    # The first ones would all come from one data set.
    return [photographs[k * len(photographs) // max_photos] for k in range(max_photos)]


def _masks(segmenter: Answers, rows: list[Row]) -> list[npt.NDArray[np.bool_]]:
    """The answers to all rows of one photograph, or RefsegError before any of them is scored."""
    image: Path = rows[0].image
    encoded = segmenter.encode(image)
    masks: list[npt.NDArray[np.bool_]] = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for row, answer in zip(chunk, segmenter.segment(encoded, [row.expression for row in chunk]), strict=True):
            if answer.mask.shape != (row.height, row.width):
                raise RefsegError(
                    f"{image} is {answer.mask.shape} but its rows say {(row.height, row.width)}; "
                    "make the table anew from the photographs as displayed"
                )
            masks.append(answer.mask)
    return masks


def _numbers(scores: Scores) -> dict[str, Any]:
    return {
        "overall_iou": scores.overall_iou,
        "mean_iou": scores.mean_iou,
        "precision": {str(x): share for x, share in scores.precision.items()},
        "empty_share": scores.empty_share,
        "expressions": scores.count,
    }


def _cells(scores: Scores) -> list[str]:
    precision = scores.precision
    shares = [scores.overall_iou, scores.mean_iou, precision[0.5], precision[0.7], precision[0.9]]
    return [f"{100 * share:.1f}" for share in [*shares, scores.empty_share]] + [str(scores.count)]
