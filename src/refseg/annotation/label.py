"""A folder of photographs labelled, one record a photograph; an executor decides where they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refseg.annotation.expressions import Plan, distinct
from refseg.annotation.journal import Journal, Record, stamp
from refseg.errors import RefsegError
from refseg.segmenter import Segmenter

Task = tuple[str, list[str]]
"""A photograph relative to its folder, and the expressions that are asked of it."""


@dataclass(frozen=True)
class Skipped:
    """A photograph that cannot be read, and why."""

    photo: str
    reason: str


Executor = Callable[[Sequence[Task]], Iterable[Record | Skipped]]
"""Answers each task once, in any order."""


def remaining(plan: Plan, folder: Path, journal: Journal) -> list[Task]:
    """What the journal lacks. Raises RefsegError if it has answers to other expressions."""
    finished = journal.finished(plan, folder)
    return [(photo, distinct(labels)) for photo, labels in plan.items() if photo not in finished]


def label(tasks: Sequence[Task], journal: Journal, execute: Executor) -> Iterator[Record | Skipped]:
    """Does the tasks, and writes each photograph into the journal before it is handed out."""
    for outcome in execute(tasks):
        if not isinstance(outcome, Skipped):
            journal.add(outcome)
        yield outcome


def one_after_the_other(segmenter: Segmenter, folder: Path) -> Executor:
    """The executor that computes in this process."""
    return lambda tasks: (answer(segmenter, folder, task) for task in tasks)


def answer(segmenter: Segmenter, folder: Path, task: Task) -> Record | Skipped:
    """One photograph, encoded once for all its expressions; this is the work of every executor."""
    photo, expressions = task
    seen = stamp(folder / photo)  # before it is read: where it changes meanwhile, it is done once more
    try:
        encoded = segmenter.encode(folder / photo)
    except RefsegError as fault:
        return Skipped(photo, str(fault))
    results = [result.to_dict() for result in segmenter.segment(encoded, expressions)]
    return {"photo": photo, "stamp": seen, "size": list(encoded.size), "results": results}


def identity(segmenter: Segmenter) -> dict[str, Any]:
    """What decides an answer: a digest of weights, vocabulary and config, wherever they lie, and the threshold."""
    if segmenter.checkpoint is None:
        raise RefsegError("this segmenter was read from no folder; save its network, and load that")
    return {"model": segmenter.checkpoint.digest, "threshold": segmenter.threshold}
