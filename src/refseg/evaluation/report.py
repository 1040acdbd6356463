"""A report: the scores of one model on one data set, with everything needed to repeat and compare them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from refseg.errors import RefsegError
from refseg.evaluation.protocols import Pixels, Protocol, find_protocol
from refseg.evaluation.scores import Scores

WITH_SIBLING, WITHOUT_SIBLING = "with a sibling", "without"
SIZES = {0.01: "below 1%", 0.05: "1% to 5%", 0.2: "5% to 20%", math.inf: "20% and more"}
"""Upper bounds of the referent's share of the photograph. They are fixed, so that reports can be compared."""


class Scored(NamedTuple):
    """What a report keeps about one answer."""

    row: int
    """Position of the row in the data."""
    photograph: str
    """File name of the photograph."""
    pixels: Pixels
    score: float | None
    area: float
    """Share of the photograph that the referent covers."""
    set: str
    kind: str
    sibling: bool

    def members(self) -> dict[str, str]:
        """The member of each group that the answer belongs to, or "" if it belongs to none.

        Only a referent has a size and siblings.
        """
        size = sibling = ""
        if self.pixels.referent:
            size = next(name for bound, name in SIZES.items() if self.area < bound)
            sibling = WITH_SIBLING if self.sibling else WITHOUT_SIBLING
        return {"all": "all", "set": self.set, "kind": self.kind, "siblings": sibling, "size": size}


_NOTES = ("model", "data", "image_size", "threshold", "version", "seed", "fingerprint", "skipped", "problems")
_COLUMNS = (
    "row",
    "photograph",
    "intersection",
    "prediction",
    "target",
    "found",
    "referent",
    "score",
    "area",
    "set",
    "kind",
    "sibling",
)
GROUPS = ("all", "set", "kind", "siblings", "size")


@dataclass
class Report:
    """The scores of one model on one data set, with everything needed to repeat and compare them."""

    model: str
    data: str
    protocol: Protocol
    image_size: int | None
    """Side of the square network input, in pixels. None if the segmenter does not say."""
    threshold: float | None
    """The probability above which a pixel belongs to the mask. None if the segmenter does not say."""
    version: str
    """The version of refseg."""
    seed: int = 0
    """The seed of the generated expressions."""
    fingerprint: str = ""
    """A fingerprint of the rows. Two reports with the same one are about the same rows."""
    skipped: int = 0
    """How many expressions were not scored because of their photograph."""
    problems: list[str] = field(default_factory=list)
    """One sentence per skipped photograph or unusable answer."""
    answers: list[Scored] = field(default_factory=list)

    @property
    def photographs(self) -> int:
        """The number of photographs that were scored."""
        return len({answer.photograph for answer in self.answers})

    @property
    def overall(self) -> Scores:
        """The scores of all expressions together. Without any expression they are NaN."""
        return Scores(self.protocol, [answer.pixels for answer in self.answers])

    @property
    def scores(self) -> dict[str, dict[str, Scores]]:
        """The scores of each group of GROUPS and of each of its members, in order."""
        found: dict[str, dict[str, Scores]] = {}
        for answer in self.answers:
            for group, member in answer.members().items():
                if member:
                    members = found.setdefault(group, {})
                    members.setdefault(member, Scores(self.protocol)).pixels.append(answer.pixels)
        sizes = list(SIZES.values())
        in_order = {group: sorted(found[group]) for group in GROUPS if group in found}
        if "size" in in_order:
            in_order["size"].sort(key=sizes.index)
        return {group: {member: found[group][member] for member in members} for group, members in in_order.items()}

    @property
    def splits(self) -> list[str]:
        """The sets that were scored."""
        return sorted({answer.set for answer in self.answers if answer.set})

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON: shares in 0..1, and None for undefined numbers. `from_dict` reads it."""
        return {
            "model": self.model,
            "data": self.data,
            "splits": self.splits,
            "protocol": self.protocol.name,
            "image_size": self.image_size,
            "threshold": self.threshold,
            "seed": self.seed,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "photographs": self.photographs,
            "expressions": self.overall.count,
            "skipped": self.skipped,
            "problems": list(self.problems),
            "scores": {
                group: {member: _numbers(scores) for member, scores in members.items()}
                for group, members in self.scores.items()
            },
            "answers": self._columns(),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON. Each column of the answers, which only programs read, is one line."""
        record = self.to_dict()
        columns = record.pop("answers")
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(column)}" for name, column in columns.items())
        return f'{json.dumps(record, indent=2)[:-2]},\n  "answers": {{\n{lines}\n  }}\n}}'

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Report:
        """Reads what `to_dict` made. Raises RefsegError if it is something else."""
        try:
            columns = record["answers"]
            photographs = columns["photographs"]
            answers = [
                Scored(
                    row, photographs[photo], Pixels(i, p, t, bool(f), bool(r)), score, area, part, kind, bool(sibling)
                )
                for row, photo, i, p, t, f, r, score, area, part, kind, sibling in zip(
                    *(columns[name] for name in _COLUMNS), strict=True
                )
            ]
            return cls(
                protocol=find_protocol(record["protocol"]),
                answers=answers,
                **{name: record[name] for name in _NOTES},
            )
        except (KeyError, TypeError, ValueError, IndexError) as fault:
            raise RefsegError(f"this is no report of refseg evaluate ({fault}); write one with --out") from fault

    def _columns(self) -> dict[str, list[Any]]:
        photographs = {name: number for number, name in enumerate(dict.fromkeys(a.photograph for a in self.answers))}
        columns: dict[str, list[Any]] = {
            "photographs": list(photographs),
            **{name: [] for name in _COLUMNS},
        }
        for answer in self.answers:
            pixels = map(int, answer.pixels)
            notes = (answer.score, answer.area, answer.set, answer.kind, int(answer.sibling))
            values = (answer.row, photographs[answer.photograph], *pixels, *notes)
            for name, value in zip(_COLUMNS, values, strict=True):
                columns[name].append(value)
        return columns

    def to_text(self) -> str:
        """A table for people, in percent. Its first lines say what was measured and how."""
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
        for group, members in self.scores.items():
            for member, scores in members.items():
                table.append(["" if group == "all" else group, member, *_cells(scores)])
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        for line in table:
            names = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
            cells = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
            lines.append("  ".join(names + cells).rstrip())
        overall = self.overall
        if not math.isnan(overall.no_target_accuracy) and self.protocol.no_target:
            lines.append(f"\nwithout a referent {overall.no_target_accuracy:.1%} answered by nothing (N-acc.), ")
            lines[-1] += f"with one {overall.target_accuracy:.1%} by a find (T-acc.)"
        return "\n".join(lines)

    def _decision(self) -> str:
        if self.threshold is None:
            return "decided by the segmenter"
        if self.threshold == self.protocol.threshold:
            return f"decided at {self.threshold:g}"
        return f"decided at {self.threshold:g} where the protocol says {self.protocol.threshold:g}"


def read_report(path: Path) -> Report:
    """Reads what `refseg evaluate --out` wrote. Raises RefsegError if the file is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RefsegError(f"{path} cannot be read ({fault.strerror}); give reports of refseg evaluate --out") from fault
    except ValueError as fault:
        raise RefsegError(f"{path} is not JSON ({fault}); give reports of refseg evaluate --out") from fault
    try:
        return Report.from_dict(record)
    except RefsegError as fault:
        raise RefsegError(f"{path}: {fault}") from fault


def _numbers(scores: Scores) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "overall_iou": scores.overall_iou,
        "mean_iou": scores.mean_iou,
        "precision": {str(x): share for x, share in scores.precision.items()},
        "empty_share": scores.empty_share,
        "expressions": scores.count,
    }
    if scores.protocol.no_target:
        numbers["no_target_accuracy"] = scores.no_target_accuracy
        numbers["target_accuracy"] = scores.target_accuracy
    return {name: None if isinstance(n, float) and math.isnan(n) else n for name, n in numbers.items()}


def _cells(scores: Scores) -> list[str]:
    precision = scores.precision
    shares = [scores.overall_iou, scores.mean_iou, precision[0.5], precision[0.7], precision[0.9]]
    return [percent(share) for share in [*shares, scores.empty_share]] + [str(scores.count)]


def percent(share: float) -> str:
    """The number with one decimal, or a dash if it is undefined."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
