"""Checks whether a copy is the published dataset, and whether training and evaluation splits share photographs."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from refseg.data.published.catalogue import Counts
from refseg.data.published.referents import Copy, Referent, Skip, make_rows
from refseg.data.segmentations import Reason

_LISTED = 5
"""Examples printed of each kind of fault."""


class SplitReport(NamedTuple):
    """One split of a copy, compared with the published one."""

    split: str
    found: Counts
    published: Counts
    skips: list[Skip]

    @property
    def sound(self) -> bool:
        """Whether the counts are the published ones, as far as these are known, and every expression can be used."""
        return self.published.confirms(self.found) and not self.skips


@dataclass(frozen=True, slots=True)
class FileReport:
    """An annotation file and its fingerprint."""

    path: Path
    sha256: str
    published: str
    """The published file's SHA-256. Empty if none is on record."""


@dataclass
class Verification:
    """All that is known of a copy."""

    copy: Copy
    files: list[FileReport] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether the copy is the published dataset as far as can be told."""
        same = all(file.published in ("", file.sha256) for file in self.files)
        return same and all(split.sound for split in self.splits)

    def to_text(self) -> str:
        """A report for people: files, counts, faults with examples, and where to get what is missing."""
        lines = [f"{self.copy.dataset.title}: {self.copy.form}", *(f"note: {note}" for note in self.copy.notes)]
        lines += [_file_line(file) for file in self.files]
        lines += ["", f"{'split':<9}{'expressions':>24}{'referents':>20}{'photographs':>18}  found / published"]
        for split in self.splits:
            pairs = zip(split.found, split.published, strict=True)
            cells = [f"{found:,} / {published:,}" if published else f"{found:,} / ?" for found, published in pairs]
            known = "as published" if any(split.published) else "no published count is on record"
            verdict = known if split.published.confirms(split.found) else "DIFFERS"
            lines.append(f"{split.split:<9}{cells[0]:>24}{cells[1]:>20}{cells[2]:>18}  {verdict}")
        skips = [skip for split in _disjoint(self.splits) for skip in split.skips]
        lines += ["", *skip_lines(skips)] if skips else []
        if not self.sound:
            lines += ["", *_cures(self, skips)]
        return "\n".join(lines)


def verify(copy: Copy) -> Verification:
    """Compares a copy with the published dataset, and reads every photograph's header and every mask."""
    report = Verification(copy)
    for path in copy.files:
        published = copy.dataset.hashes.get(path.name, "")
        report.files.append(FileReport(path, _sha256(path), published))
    for split, published_counts in copy.dataset.splits.items():
        _, skips = make_rows(copy, split)
        report.splits.append(SplitReport(split, count(copy.of(split)), published_counts, skips))
    return report


def count(referents: Iterable[Referent]) -> Counts:
    """The size of a copy, whether it can be used or not, in the units of the published counts."""
    referents = list(referents)
    expressions = sum(len(referent.expressions) for referent in referents)
    return Counts(expressions, len(referents), len({referent.photograph for referent in referents}))


def skip_lines(skips: Sequence[Skip]) -> list[str]:
    """One line per reason: how many expressions it concerns, and the first few of them."""
    of_reason: dict[Reason, list[Skip]] = defaultdict(list)
    for skip in skips:
        of_reason[skip.reason].append(skip)
    lines = []
    for reason, group in of_reason.items():
        more = f" and {len(group) - _LISTED:,} more" if len(group) > _LISTED else ""
        examples = "; ".join(skip.item for skip in group[:_LISTED])
        lines.append(f"{sum(skip.expressions for skip in group):,} expressions skipped, {reason}: {examples}{more}")
    return lines


class Overlap(NamedTuple):
    """Photographs that a training split and an evaluation split share."""

    training: str
    evaluation: str
    photographs: frozenset[int | str]
    """Their ids."""
    share: float
    """How much of the evaluation split's photographs that is, 0..1."""
    expressions: int
    """The evaluation split's expressions about them."""


def overlaps(copies: Sequence[Copy]) -> list[Overlap]:
    """Compares every training split with every evaluation split, within a dataset and across. Most shared come first.

    Photographs are the same if both datasets use one collection and their ids are equal.
    """
    found = []
    for learner in copies:
        seen = {referent.image_id for referent in learner.of("train")}
        for taker in copies:
            if learner.dataset.photographs == taker.dataset.photographs:
                splits = [split for split in taker.dataset.splits if not split.startswith("train")]
                found += [_overlap(learner, seen, taker, split) for split in splits]
    return sorted((overlap for overlap in found if overlap.photographs), key=lambda item: -len(item.photographs))


def _overlap(learner: Copy, seen: set[int | str], taker: Copy, split: str) -> Overlap:
    asked = Counter[int | str]()
    for referent in taker.of(split):
        asked[referent.image_id] += len(referent.expressions)
    shared = frozenset(seen & set(asked))
    return Overlap(
        f"{learner.dataset.name}:train", f"{taker.dataset.name}:{split}", shared,
        len(shared) / max(len(asked), 1), sum(asked[image] for image in shared),
    )  # fmt: skip


def _disjoint(splits: Iterable[SplitReport]) -> list[SplitReport]:
    return [split for split in splits if split.split != "trainval"]


def _file_line(file: FileReport) -> str:
    if not file.published:
        verdict = "no published hash is on record"
    else:
        verdict = "as published" if file.published == file.sha256 else "DIFFERS from the published file"
    return f"{file.path.name}  sha256 {file.sha256}  {verdict}"


def _cures(report: Verification, skips: Sequence[Skip]) -> list[str]:
    copy = report.copy
    lines = []
    missing = {name for skip in skips if skip.reason is Reason.NO_PHOTOGRAPH for name in [skip.item.split(",")[0]]}
    if missing:
        wanted = len({referent.photograph for referent in copy.referents})
        places = ", ".join(map(str, copy.photographs.folders)) or "no folder of photographs was found"
        lines.append(f"{len(missing):,} of {wanted:,} photographs are missing ({places})")
    return [*lines, *copy.dataset.sources]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
