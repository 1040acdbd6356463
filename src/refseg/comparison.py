"""Several reports side by side: one table per protocol and data, with paired intervals of the differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.metrics import PRECISION_AT, Scores
from refseg.report import GROUPS, Report, percent

RESAMPLES = 2000


class Interval(NamedTuple):
    """A difference between two models as shares, positive where the second is better, and its 95% interval."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.difference):
            return "–"
        return f"{100 * self.difference:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def bootstrap(first: Report, second: Report, member: str = "all", by: str = "all") -> tuple[Interval, Interval]:
    """By how much the second report differs from the first in overall IoU and in mean IoU.

    Percentile bootstrap over photographs, `RESAMPLES` draws with a fixed seed: each draw takes the same photographs for
    both reports, so what makes a photograph hard for both cancels out. Counts only the rows that both have scored.
    Raises RefsegError if the reports follow different protocols or are about different data.
    """
    if first.protocol != second.protocol:
        raise RefsegError(
            f"reports under {first.protocol.name} and {second.protocol.name} do not compare; evaluate both under one"
        )
    if first.fingerprint != second.fingerprint:
        raise RefsegError(
            f"{first.model} and {second.model} were scored on different rows; evaluate both with the same --data, "
            "--photos and --seed"
        )
    scored = {answer.row for answer in second.answers}
    both = {answer.row: answer.photograph for answer in first.answers if answer.row in scored}
    sums = [_by_photograph(report, both, by, member) for report in (first, second)]
    photographs = len(sums[0])
    draws = np.random.default_rng(0).multinomial(photographs, np.full(photographs, 1 / photographs), size=RESAMPLES)
    # The first line is the data themselves: every photograph once.
    draws = np.concatenate([np.ones((1, photographs), dtype=np.int64), draws])
    intervals = []
    for above, below in ((0, 1), (2, 3)):
        with np.errstate(invalid="ignore", divide="ignore"):
            values = [(draws @ own[:, above]) / (draws @ own[:, below]) for own in sums]
        change = values[1] - values[0]
        if below == 1 and not first.protocol.overall:
            change = np.full_like(change, np.nan)
        valid = change[1:][~np.isnan(change[1:])]
        low, high = np.quantile(valid, (0.025, 0.975)) if len(valid) else (math.nan, math.nan)
        intervals.append(Interval(float(change[0]), float(low), float(high)))
    return intervals[0], intervals[1]


def _by_photograph(report: Report, rows: dict[int, str], by: str, member: str) -> npt.NDArray[np.float64]:
    """Per photograph: sum of intersections, of unions, of IoUs, and number of expressions; (P, 4).

    `rows` names the photograph of each row: the reports may have read them from different folders.
    """
    scores = Scores(report.protocol)
    sums: dict[str, list[float]] = {}
    for answer in report.answers:
        if answer.row in rows and answer.members()[by] == member:
            own = sums.setdefault(rows[answer.row], [0.0, 0.0, 0.0, 0.0])
            iou = scores.iou(answer.pixels)
            if not math.isnan(iou):
                for place, value in enumerate((*scores.pair(answer.pixels), iou, 1.0)):
                    own[place] += value
    return np.array([sums[name] for name in sorted(sums)])


@dataclass(frozen=True)
class _Line:
    report: Report
    member: str
    scores: Scores
    intervals: tuple[Interval, Interval] | None
    """Differences to the first report of the table; None for that one itself."""


def to_markdown(reports: Sequence[Report], by: str = "all") -> str:
    """One table for each protocol and data; in percent."""
    blocks = []
    for table in _tables(reports, by):
        first = table[0].report
        compared = any(line.intervals for line in table)
        names = ["model", "input", "decided at", *([by] if by != "all" else []), "overall IoU", "mean IoU"]
        names += [f"P@{x}" for x in PRECISION_AT] + ["empty", "expressions"]
        names += [f"{iou} against {first.model} (95%)" for iou in ("overall", "mean")] if compared else []
        cells = [_cells(line, by, compared) for line in table]
        words = 4 if by != "all" else 3
        rule = ["---" if place < words else "---:" for place in range(len(names))]
        title = f"Protocol {first.protocol.name} ({first.protocol.scored_at}), data {first.data}"
        title += f", {first.photographs} photographs, rows {first.fingerprint}, refseg {first.version}"
        lines = ["| " + " | ".join(line) + " |" for line in (names, rule, *cells)]
        blocks.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def _cells(line: _Line, by: str, compared: bool) -> list[str]:
    report, scores = line.report, line.scores
    cells = [report.model.replace("|", r"\|"), _known(report.image_size), _known(report.threshold)]
    cells += [line.member] if by != "all" else []
    cells += [percent(share) for share in (scores.overall_iou, scores.mean_iou, *scores.precision.values())]
    cells += [percent(scores.empty_share), str(scores.count)]
    if compared:
        cells += [str(interval) for interval in line.intervals] if line.intervals else ["", ""]
    return cells


def _known(number: float | None) -> str:
    return "–" if number is None else f"{number:g}"


def to_csv(reports: Sequence[Report], by: str = "all") -> str:
    """One line per report and member, shares in 0..1; empty where undefined.

    Raises RefsegError for reports that belong into different tables: a column holds numbers of one protocol and data.
    """
    tables = list(_tables(reports, by))
    if len(tables) > 1:
        raise RefsegError(
            f"these reports belong into {len(tables)} tables, by protocol and data; write one CSV for each, or Markdown"
        )
    text = io.StringIO()
    names = ["protocol", "data", "rows", "seed", "version", "model", "image_size", "threshold", "group", "member"]
    names += ["overall_iou", "mean_iou", *(f"precision_{x}" for x in PRECISION_AT), "empty", "expressions"]
    for iou in ("overall", "mean"):
        names += [f"{iou}_difference", f"{iou}_low", f"{iou}_high"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for line in tables[0]:
        report, scores = line.report, line.scores
        notes = [report.protocol.name, report.data, report.fingerprint, report.seed, report.version, report.model]
        notes += [report.image_size, report.threshold, by, line.member]
        shares = [scores.overall_iou, scores.mean_iou, *scores.precision.values(), scores.empty_share]
        changes = [number for interval in line.intervals for number in interval] if line.intervals else [math.nan] * 6
        writer.writerow([*notes, *map(_exact, shares), scores.count, *map(_exact, changes)])
    return text.getvalue().rstrip("\n")


def _exact(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"


def _tables(reports: Sequence[Report], by: str) -> Iterator[list[_Line]]:
    """The reports that compare, in the order given; the first is what the others are held against."""
    if by not in GROUPS:
        raise RefsegError(f"there is no group {by!r}; one of: {', '.join(GROUPS)}")
    alike: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        alike.setdefault((report.protocol.name, report.fingerprint), []).append(report)
    for own in alike.values():
        lines = []
        for report in own:
            for member, scores in report.scores.get(by, {}).items():
                known = member in own[0].scores.get(by, {})
                interval = bootstrap(own[0], report, member, by) if report is not own[0] and known else None
                lines.append(_Line(report, member, scores, interval))
        if not lines:
            raise RefsegError(f"{own[0].model}: no expression of the data belongs to a {by}; leave --by out")
        yield lines
