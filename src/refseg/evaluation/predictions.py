"""Scores any model's predictions, one JSON line each, as our own models are; docs/protocols.md has the format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.data.segmentations import Unusable, encode_segmentation
from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.evaluation.evaluate import Decided, Numbered, score
from refseg.evaluation.protocols import NATIVE, Protocol
from refseg.evaluation.report import Report


def score_predictions(
    predictions: Path,
    rows: Sequence[Row],
    *,
    model: str = "",
    data: str = "",
    protocol: Protocol = NATIVE,
    image_size: int | None = None,
    seed: int = 0,
) -> Report:
    """Scores a file of predictions against rows.

    A line is an object with `rle`, the mask as COCO run lengths at the photograph's H×W (or at the protocol's square),
    and with either `row`, the row's position in the data from 0, or `image` (file name or id) and `expression`.
    `photo` may replace `image`, so that the lines of `refseg segment --json` can be scored. A line may also have
    `score`, 0..1, and `found`, which is false if the model says that there is no referent.

    A row without a usable prediction counts as answered by an empty mask and is listed among the report's problems.
    Leaving it out would raise the score. `image_size` is the side of the model's input, which the protocol `shnet`
    needs. Raises RefsegError if the file cannot be read, or has no prediction for any row.
    """
    if protocol.square == "half" and image_size is None:
        raise RefsegError(f"the protocol {protocol.name} scores at half the network's input; give --resolution, as 320")
    report = Report(model or predictions.stem, data, protocol, image_size, None, version("refseg"), seed)
    answers = _read(predictions, rows, protocol, image_size or 0, report.problems)
    if not answers:
        first = f"; {report.problems[0]}" if report.problems else ""
        raise RefsegError(f"{predictions} holds no prediction for any of {len(rows)} expressions{first}")
    missing = [number for number in range(len(rows)) if number not in answers]
    if missing:
        report.problems.append(
            f"{len(missing)} of {len(rows)} expressions have no prediction and count as answered by an empty mask, "
            f"such as row {missing[0]}, {rows[missing[0]].expression!r}"
        )

    def answer(rows: list[Numbered]) -> Iterable[Decided]:
        for number, row in rows:
            size = protocol.size((row.height, row.width), image_size or 0)
            record = answers.get(number)
            if record is None:
                yield Decided(np.zeros(size, dtype=bool))
            else:
                mask = np.asarray(coco_mask.decode(record["rle"]), dtype=bool)
                yield Decided(protocol.bring(mask, image_size or 0), record.get("score"), record.get("found"))

    return score(report, rows, answer)


def _read(
    path: Path, rows: Sequence[Row], protocol: Protocol, image_size: int, problems: list[str]
) -> dict[int, dict[str, Any]]:
    """The prediction of each row that has one. Faults of lines are appended to `problems`."""
    named = _names(rows)
    answers: dict[int, dict[str, Any]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = _record(line)
                    for number in _rows_of(record, rows, named):
                        checked = _checked(record, rows[number], protocol, image_size)
                        if number in answers:
                            raise RefsegError(f"row {number} has a prediction already, which counts")
                        answers[number] = checked
                except RefsegError as fault:
                    problems.append(f"{path.name}, line {line_number}: {fault}")
    except UnicodeDecodeError as fault:
        raise RefsegError(f"{path} is not text ({fault.reason}); give JSON lines in UTF-8") from fault
    return answers


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise RefsegError(f"not JSON ({fault}); write one object a line") from fault
    if not isinstance(record, dict):
        raise RefsegError('not an object; write {"row": 0, "rle": {"size": [H, W], "counts": "…"}}')
    return record


Names = dict[tuple[str, str], list[int]]


def _names(rows: Sequence[Row]) -> Names:
    """Rows by photograph (file name, or id) and expression."""
    named: Names = defaultdict(list)
    for number, row in enumerate(rows):
        for image in {row.image.name, str(row.image_id)}:
            named[image, row.expression].append(number)
    return named


def _rows_of(record: dict[str, Any], rows: Sequence[Row], named: Names) -> list[int]:
    """The rows that a line answers: one, or several if an expression was given twice for a photograph."""
    if "row" in record:
        number = record["row"]
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(rows):
            raise RefsegError(f"row {number!r} is not in the data; its rows are 0 to {len(rows) - 1}")
        return [number]
    image, expression = record.get("image", record.get("photo")), record.get("expression")
    if image is None or not isinstance(expression, str):
        raise RefsegError("it does not say what it answers; give row, or image and expression")
    name = str(image)
    found = named.get((name, expression)) or named.get((Path(name).name, expression), [])
    if not found:
        raise RefsegError(f"the data has no expression {expression!r} about the photograph {name}")
    if len({rows[number].image for number in found}) > 1:
        raise RefsegError(f"the data has several photographs {name} with that expression; give row")
    return found


def _checked(record: dict[str, Any], row: Row, protocol: Protocol, image_size: int) -> dict[str, Any]:
    """What is scored of a prediction: compressed rle, score and found. Raises RefsegError if it is unusable."""
    rle = record.get("rle")
    photograph = (row.height, row.width)
    sizes = sorted({photograph, protocol.size(photograph, image_size)})
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str | list):
        raise RefsegError('it has no mask; give "rle": {"size": [H, W], "counts": "…"}')
    size = rle.get("size")
    if size not in [list(allowed) for allowed in sizes] or not all(type(side) is int for side in size):
        wanted = " or ".join(str(list(allowed)) for allowed in sizes)
        raise RefsegError(f"its mask has the size {size}; give {wanted} (height, width)")
    try:
        rle = encode_segmentation(rle, (size[0], size[1]))
    except Unusable as fault:
        raise RefsegError(f"{fault}; encode the mask with pycocotools") from fault
    score, found = record.get("score"), record.get("found")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        raise RefsegError(f"its score is {score!r}; give a number from 0 to 1, or none")
    if found is not None and not isinstance(found, bool):
        raise RefsegError(f"its found is {found!r}; give true or false")
    return {"rle": rle, "score": score, "found": found}
