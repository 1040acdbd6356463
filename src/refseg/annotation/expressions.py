"""The file that says what to look for, and in which photographs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from refseg.errors import RefsegError
from refseg.words import clean_expression

_COLUMNS = ("photo", "expression", "category")


@dataclass(frozen=True, slots=True)
class Label:
    """What to look for, and what to call it."""

    expression: str
    category: str
    photo: str | None = None
    """The only photograph in which to look, relative to the folder; None means all."""


Plan = dict[str, list[Label]]
"""Photographs, relative to their folder and sorted, and what is looked for in each."""


def read_expressions(path: Path) -> list[Label]:
    """Reads a text of one expression a line, or a CSV.

    A CSV has the columns expression and category, in this order or as its first line names them; a first line may
    also name the column photo. An empty category is the expression, an empty photo means all. Each label appears
    once. Raises RefsegError that names the line at fault.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file) if path.suffix.lower() == ".csv" else ([line] for line in file)
            rows = [(number, row) for number, row in enumerate(lines, start=1) if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as fault:
        raise RefsegError(f"{path} is not text ({fault.reason}); save it as UTF-8") from fault
    except csv.Error as fault:
        raise RefsegError(f"{path} is not a CSV ({fault}); separate its columns by commas") from fault
    columns: Sequence[str] = _COLUMNS[1:]
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if path.suffix.lower() == ".csv" and "expression" in names:
        columns, rows = names, rows[1:]
        if unknown := set(columns) - {*_COLUMNS}:
            raise RefsegError(f"{path} has a column {min(unknown)!r}; its columns are {', '.join(_COLUMNS)}")
    labels = [_label(path, number, columns, row) for number, row in rows]
    if not labels:
        raise RefsegError(f"{path} holds no expressions; write one a line, such as: the red bag")
    return list(dict.fromkeys(labels))


def _label(path: Path, number: int, columns: Sequence[str], row: Sequence[str]) -> Label:
    if len(row) > len(columns):
        raise RefsegError(
            f"{path}, line {number}, has {len(row)} columns and not {len(columns)}; put an expression with a comma "
            "in double quotes"
        )
    cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
    try:
        expression = clean_expression(cells.get("expression", ""))
    except RefsegError as fault:
        raise RefsegError(f"{path}, line {number}: {fault}") from fault
    return Label(expression, cells.get("category") or expression, cells.get("photo") or None)


def plan(labels: Iterable[Label], photos: Iterable[str]) -> Plan:
    """What to look for in each photograph; those of which nothing is asked are left out.

    Raises RefsegError if a label names a photograph that is not among `photos`.
    """
    everywhere: list[Label] = []
    of_photo: dict[str, list[Label]] = {}
    for label in labels:
        (everywhere if label.photo is None else of_photo.setdefault(label.photo, [])).append(label)
    names = sorted(photos)
    if missing := of_photo.keys() - set(names):
        raise RefsegError(
            f"the expressions name a photograph {min(missing)} and the folder holds none; "
            "name photographs relative to the folder, as it spells them"
        )
    plans = {name: [*everywhere, *of_photo.get(name, [])] for name in names}
    return {name: asked for name, asked in plans.items() if asked}


def distinct(labels: Iterable[Label]) -> list[str]:
    """The expressions of labels, each once: one may stand for two categories."""
    return list(dict.fromkeys(label.expression for label in labels))
