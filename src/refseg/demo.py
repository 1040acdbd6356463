"""A first look: three different things asked of one public-domain photograph that comes with matplotlib."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.segmentation import Segmentation
    from refseg.segmenter import Segmenter

EXPRESSIONS = ("the woman", "her coat", "the wall")


@dataclass(frozen=True)
class Answer:
    """One expression's result, the overlay's file, and the seconds it took."""

    result: Segmentation
    path: Path
    seconds: float


def sample_photo() -> Path:
    """Rear Admiral Grace Hopper, photographed by the United States Navy: in the public domain."""
    try:
        from matplotlib.cbook import get_sample_data
    except ImportError as fault:
        raise RefsegError(
            'the demonstration\'s photograph comes with matplotlib; pip install "refseg[demo]"'
        ) from fault
    return Path(get_sample_data("grace_hopper.jpg", asfileobj=False))


def show(segmenter: Segmenter, folder: Path) -> list[Answer]:
    """Segments the sample photograph and writes one overlay per expression into `folder`.

    The photograph is encoded once: the first answer's time includes that, the others' do not.
    """
    answers = []
    start = time.perf_counter()
    encoded = segmenter.encode(sample_photo())
    for expression in EXPRESSIONS:
        (result,) = segmenter.segment(encoded, [expression])
        seconds = time.perf_counter() - start
        path = folder / f"{expression.replace(' ', '-')}.jpg"
        result.save(path)
        answers.append(Answer(result, path, seconds))
        start = time.perf_counter()
    return answers
