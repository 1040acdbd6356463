"""A first look: several things asked of one photograph that the package carries."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refseg.segmentation import Segmentation
    from refseg.segmenter import Segmenter

PHOTO = Path(__file__).parent / "photographs" / "coffee.jpg"
"""A cup of coffee on a table. NOTICE names its source and its terms."""
TITLE = "Coffee, by Rachel Michetti. CC0"
EXPRESSIONS = ("the cup", "the table", "a dog")


@dataclass(frozen=True)
class Answer:
    """One expression's result, the overlay's file, and the seconds it took."""

    result: Segmentation
    path: Path
    seconds: float


def show(segmenter: Segmenter, folder: Path) -> list[Answer]:
    """Segments the photograph and writes one overlay per expression into `folder`.

    The photograph is encoded once. The first answer's time includes that, the times of the others do not.
    """
    answers = []
    start = time.perf_counter()
    encoded = segmenter.encode(PHOTO)
    for expression in EXPRESSIONS:
        (result,) = segmenter.segment(encoded, [expression])
        seconds = time.perf_counter() - start
        path = folder / f"{expression.replace(' ', '-')}.jpg"
        result.save(path)
        answers.append(Answer(result, path, seconds))
        start = time.perf_counter()
    return answers
