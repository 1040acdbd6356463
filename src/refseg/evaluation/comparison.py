"""Compares models: one table per protocol and data, with paired intervals of the differences."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.evaluation.report import GROUPS, Report, percent, read_report
from refseg.evaluation.scores import PRECISION_AT, Scores

RESAMPLES = 2000


class Interval(NamedTuple):
    """A difference between two models, in shares, and its 95% interval. Positive means that the second is better."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.difference):
            return "–"
        return f"{100 * self.difference:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def bootstrap(
    first: Sequence[Report], second: Sequence[Report], member: str = "all", by: str = "all"
) -> tuple[Interval, Interval]:
    """By how much the second model differs from the first in overall IoU and in mean IoU.

    Each side is the reports of one model, one per run; the mean over its runs counts. The interval is a percentile
    bootstrap over photographs, of `RESAMPLES` draws with a fixed seed. Each draw takes the same photographs for all
    reports, so what makes a photograph hard for all cancels out. The interval does not contain what another seed would
    change; the deviation between runs shows that. Only rows that all reports have scored count.
    Raises RefsegError if the reports follow different protocols or are about different data.
    """
    reference = first[0]
    for report in (*first[1:], *second):
        _ensure_alike(reference, report)
    both = {answer.row: answer.photograph for answer in reference.answers}
    for report in (*first[1:], *second):
        scored = {answer.row for answer in report.answers}
        both = {row: photograph for row, photograph in both.items() if row in scored}
    sums = [[_by_photograph(report, both, by, member) for report in side] for side in (first, second)]
    photographs = len(sums[0][0])
    draws = np.random.default_rng(0).multinomial(photographs, np.full(photographs, 1 / photographs), size=RESAMPLES)
    # The first line is the data as they are: every photograph once.
    draws = np.concatenate([np.ones((1, photographs), dtype=np.int64), draws])
    intervals = []
    for above, below in ((0, 1), (2, 3)):
        with np.errstate(invalid="ignore", divide="ignore"):
            values = [
                np.mean(
                    [(draws @ sums_of_run[:, above]) / (draws @ sums_of_run[:, below]) for sums_of_run in side], axis=0
                )
                for side in sums
            ]
        change = values[1] - values[0]
        if below == 1 and not reference.protocol.overall:
            change = np.full_like(change, np.nan)
        valid = change[1:][~np.isnan(change[1:])]
        low, high = np.quantile(valid, (0.025, 0.975)) if len(valid) else (math.nan, math.nan)
        intervals.append(Interval(float(change[0]), float(low), float(high)))
    return intervals[0], intervals[1]


def _ensure_alike(first: Report, second: Report) -> None:
    if first.protocol != second.protocol:
        raise RefsegError(
            f"reports under {first.protocol.name} and {second.protocol.name} do not compare; evaluate both under one"
        )
    if first.fingerprint != second.fingerprint:
        raise RefsegError(
            f"{first.model} and {second.model} were scored on different rows; evaluate both with the same --data, "
            "--photos and --seed"
        )


def _by_photograph(report: Report, rows: dict[int, str], by: str, member: str) -> npt.NDArray[np.float64]:
    """For each photograph, the sums of intersections, unions and IoUs, and the number of expressions, (P, 4).

    `rows` names the photograph of each row, because the reports may have read them from different folders.
    """
    scores = Scores(report.protocol)
    sums: dict[str, list[float]] = {}
    for answer in report.answers:
        if answer.row in rows and answer.members()[by] == member:
            totals = sums.setdefault(rows[answer.row], [0.0, 0.0, 0.0, 0.0])
            iou = scores.iou(answer.pixels)
            if not math.isnan(iou):
                for place, value in enumerate((*scores.pair(answer.pixels), iou, 1.0)):
                    totals[place] += value
    return np.array([sums[name] for name in sorted(sums)])


class Runs(NamedTuple):
    """One line of a table: the reports of one model, one for each seed it was trained with."""

    model: str
    reports: Sequence[Report]


def read_runs(path: Path) -> Runs:
    """A report, or a folder of the reports of one model trained with several seeds. Raises RefsegError."""
    if not path.is_dir():
        report = read_report(path)
        return Runs(report.model, [report])
    reports = [read_report(file) for file in sorted(path.glob("*.json"))]
    if not reports:
        raise RefsegError(f"{path} holds no report; give files or folders of what evaluate wrote with --out")
    for report in reports[1:]:
        _ensure_alike(reports[0], report)
    return Runs(path.resolve().name, reports)


@dataclass(frozen=True)
class _Line:
    runs: Runs
    member: str
    scores: list[Scores]
    """One report per run."""
    intervals: tuple[Interval, Interval] | None
    """Differences from the first model of the table. None for the first model."""

    @property
    def overall(self) -> list[float]:
        return [scores.overall_iou for scores in self.scores]

    @property
    def mean(self) -> list[float]:
        return [scores.mean_iou for scores in self.scores]

    @property
    def precision(self) -> list[float]:
        """The mean over the runs, at each of PRECISION_AT."""
        return [float(np.mean([scores.precision[at] for scores in self.scores])) for at in PRECISION_AT]

    @property
    def empty(self) -> float:
        return float(np.mean([scores.empty_share for scores in self.scores]))


def _deviation(shares: Sequence[float]) -> float:
    """The sample deviation between runs. NaN for a single run."""
    return float(np.std(shares, ddof=1)) if len(shares) > 1 else math.nan


def to_markdown(rows: Sequence[Runs], by: str = "all") -> str:
    """One table for each protocol and data, in percent. Several runs become mean ± deviation."""
    blocks = []
    for table in _tables(rows, by):
        first = table[0].runs.reports[0]
        compared = any(line.intervals for line in table)
        names = ["model", "input", "decided at", *([by] if by != "all" else []), "overall IoU", "mean IoU"]
        names += [f"P@{x}" for x in PRECISION_AT] + ["empty", "expressions"]
        names += [f"{iou} against {table[0].runs.model} (95%)" for iou in ("overall", "mean")] if compared else []
        cells = [_cells(line, by, compared) for line in table]
        words = 4 if by != "all" else 3
        rule = ["---" if place < words else "---:" for place in range(len(names))]
        title = f"Protocol {first.protocol.name} ({first.protocol.scored_at}), data {first.data}"
        title += f", {first.photographs} photographs, rows {first.fingerprint}, refseg {first.version}"
        lines = ["| " + " | ".join(line) + " |" for line in (names, rule, *cells)]
        blocks.append(f"{title}\n\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def _cells(line: _Line, by: str, compared: bool) -> list[str]:
    report = line.runs.reports[0]
    cells = [line.runs.model.replace("|", r"\|"), _known(report.image_size), _known(report.threshold)]
    cells += [line.member] if by != "all" else []
    cells += [_with_deviation(shares) for shares in (line.overall, line.mean)]
    cells += [percent(share) for share in (*line.precision, line.empty)]
    cells += [str(line.scores[0].count)]
    if compared:
        cells += [str(interval) for interval in line.intervals] if line.intervals else ["", ""]
    return cells


def _with_deviation(shares: Sequence[float]) -> str:
    return percent(float(np.mean(shares))) + (f" ± {percent(_deviation(shares))}" if len(shares) > 1 else "")


def _known(number: float | None) -> str:
    return "–" if number is None else f"{number:g}"


def to_csv(rows: Sequence[Runs], by: str = "all") -> str:
    """One line per model and member: means over the runs, in 0..1, empty if undefined.

    Raises RefsegError for reports of different tables, because a column has numbers of one protocol and data.
    """
    tables = list(_tables(rows, by))
    if len(tables) > 1:
        raise RefsegError(
            f"these reports belong into {len(tables)} tables, by protocol and data; write one CSV for each, or Markdown"
        )
    text = io.StringIO()
    names = ["protocol", "data", "rows", "seed", "version", "model", "image_size", "threshold", "group", "member"]
    names += ["runs", "overall_iou", "overall_deviation", "mean_iou", "mean_deviation"]
    names += [*(f"precision_{x}" for x in PRECISION_AT), "empty", "expressions"]
    for iou in ("overall", "mean"):
        names += [f"{iou}_difference", f"{iou}_low", f"{iou}_high"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for line in tables[0]:
        report = line.runs.reports[0]
        notes = [report.protocol.name, report.data, report.fingerprint, report.seed, report.version, line.runs.model]
        notes += [report.image_size, report.threshold, by, line.member, len(line.scores)]
        shares = [
            number for values in (line.overall, line.mean) for number in (float(np.mean(values)), _deviation(values))
        ]
        shares += [*line.precision, line.empty]
        changes = [number for interval in line.intervals for number in interval] if line.intervals else [math.nan] * 6
        writer.writerow([*notes, *map(_exact, shares), line.scores[0].count, *map(_exact, changes)])
    return text.getvalue().rstrip("\n")


def _exact(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"


def _tables(rows: Sequence[Runs], by: str) -> Iterator[list[_Line]]:
    """The models that can be compared, in the order given. The others are compared with the first."""
    if by not in GROUPS:
        raise RefsegError(f"there is no group {by!r}; one of: {', '.join(GROUPS)}")
    alike: dict[tuple[str, str], list[Runs]] = {}
    for runs in rows:
        alike.setdefault((runs.reports[0].protocol.name, runs.reports[0].fingerprint), []).append(runs)
    for models in alike.values():
        lines = []
        members = [[report.scores.get(by, {}) for report in runs.reports] for runs in models]
        for runs, scores in zip(models, members, strict=True):
            for member in scores[0]:
                known = member in members[0][0]
                interval = (
                    bootstrap(models[0].reports, runs.reports, member, by) if runs is not models[0] and known else None
                )
                lines.append(_Line(runs, member, [each[member] for each in scores if member in each], interval))
        if not lines:
            raise RefsegError(f"{models[0].model}: no expression of the data belongs to a {by}; leave --by out")
        yield lines
