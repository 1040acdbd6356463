"""From a model and rows to a report. Every answer is scored on the pixels that a protocol names."""

from __future__ import annotations

import hashlib
import json
import logging
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any, NamedTuple

from tqdm import tqdm

from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.evaluation.protocols import NATIVE, Protocol, count_pixels
from refseg.evaluation.report import Report, Scored
from refseg.masks import Mask

logger = logging.getLogger(__name__)

_NAMED = 4
"""Parts of a photograph's path that a report keeps, as in photos-coco/val/images/1.jpg."""

_CHUNK = 32
"""Expressions answered at once. This limits the memory for probabilities at full size."""

Numbered = tuple[int, Row]
"""A row and its position in the data."""


class Answer(typing.Protocol):
    """What scoring needs of a `Segmentation`."""

    @property
    def mask(self) -> Mask:
        """(H, W) bool at the photograph's own size."""

    @property
    def score(self) -> float | None:
        """How sure the model is of the mask, 0..1. None if it does not say."""

    @property
    def found(self) -> bool | None:
        """Whether the referent is there at all. None if the model does not say."""


class Answering(typing.Protocol):
    """What answers expressions about a photograph: a `Segmenter`, or a baseline in its place."""

    def encode(self, photo: Any, /) -> Any:
        """Raises RefsegError for a photograph that cannot be read."""

    def segment(self, encoded: Any, expressions: list[str], /) -> Sequence[Answer]:
        """One answer per expression, in order."""


class Scorable(Answering, typing.Protocol):
    """What scoring needs of a `Segmenter`. Another model can take its place."""

    @property
    def image_size(self) -> int | None:
        """Side of the square network input, in pixels. Only the protocol `shnet` needs it."""

    @property
    def threshold(self) -> float | None:
        """The probability above which a pixel belongs to the mask. None if that is not known."""

    @property
    def refine(self) -> Any:
        """What changes probabilities before the threshold, or None. If there is one, every protocol scores masks."""

    def mask_logits(self, encoded: Any, expressions: list[str], /) -> Any:
        """(E, 1, h, w) float32 over the network's square. None if the model has only masks."""


class Decided(NamedTuple):
    """One answer on the pixels of the protocol."""

    mask: Mask
    score: float | None = None
    found: bool | None = None


Method = Callable[[list[Numbered]], Iterable[Decided]]
"""Answers all rows of one photograph, in order. A RefsegError skips the photograph."""


def evaluate(
    segmenter: Scorable,
    rows: Iterable[Row],
    progress: bool = True,
    max_photos: int | None = None,
    *,
    model: str = "",
    data: str = "",
    protocol: Protocol = NATIVE,
    seed: int = 0,
    share: bool = False,
    letterbox: bool = False,
) -> Report:
    """Answers every row and scores the answers.

    Under `native`, the masks are those that a user gets. The other protocols apply their own threshold to the network's
    mask logits. `model`, `data` and `seed` are notes for the report; `data` also names the set of rows without a split.
    `max_photos` limits the number of photographs, which are spread evenly over all. A photograph that cannot be read,
    or has another size than its rows say, is logged and skipped, and so are its expressions. `share` divides the
    photographs among the processes of torchrun; each process gets the whole report. `letterbox` says that the network
    sees letterboxed photographs, and so can an attribute of the segmenter. Of the protocols that use mask logits, only
    `cris` undoes that; the others then score masks. Raises RefsegError if there are no rows, or if no photograph could
    be scored.
    """
    image_size = segmenter.image_size
    if protocol.square == "half" and image_size is None:
        raise RefsegError(f"the protocol {protocol.name} scores at half the network's input; give its image_size")
    letterbox = letterbox or getattr(segmenter, "letterbox", False)
    by_logits = protocol is not NATIVE and segmenter.refine is None and (protocol.bicubic or not letterbox)
    report = Report(model, data, protocol, image_size, segmenter.threshold, version("refseg"), seed)

    def answer(rows: list[Numbered]) -> Iterator[Decided]:
        encoded = segmenter.encode(rows[0][1].image)
        for start in range(0, len(rows), _CHUNK):
            chunk = [row for _, row in rows[start : start + _CHUNK]]
            logits = segmenter.mask_logits(encoded, [row.expression for row in chunk]) if by_logits else None
            if logits is not None:
                report.threshold = protocol.threshold
            yield from _decide(segmenter, encoded, chunk, protocol, logits, image_size or 0, letterbox)

    return score(report, rows, answer, progress=progress, max_photos=max_photos, share=share)


def score(
    report: Report,
    rows: Iterable[Row],
    answer: Method,
    *,
    progress: bool = True,
    max_photos: int | None = None,
    share: bool = False,
) -> Report:
    """Fills the report with the scores of the answers that `answer` gives for each photograph. See `evaluate`."""
    photographs = _spread(list(_by_photograph(rows)), max_photos)
    report.fingerprint = _fingerprint(photographs)
    rank, processes = _processes() if share else (0, 1)
    quiet = None if progress and rank == 0 else True
    for photo_rows in tqdm(photographs[rank::processes], desc="photographs", unit="photo", disable=quiet):
        try:
            for (number, row), decided in zip(photo_rows, list(answer(photo_rows)), strict=True):
                report.answers.append(_scored(report, number, row, decided))
        except RefsegError as fault:
            logger.warning("skipped: %s", fault)
            report.problems.append(str(fault))
            report.skipped += len(photo_rows)
    if processes > 1:
        _gather(report)
    if not report.answers:
        raise RefsegError(f"not one of {len(photographs)} photographs could be scored; {report.problems[0]}")
    report.answers.sort(key=lambda scored: scored.row)
    return report


def _by_photograph(rows: Iterable[Row]) -> Iterator[list[Numbered]]:
    """The rows grouped as by `table.by_photograph`, each with its position in the data."""
    numbered = sorted(enumerate(rows), key=lambda item: str(item[1].image))
    for _, group in groupby(numbered, key=lambda item: item[1].image):
        yield list(group)


def _spread(photographs: list[list[Numbered]], max_photos: int | None) -> list[list[Numbered]]:
    if not photographs:
        raise RefsegError("there are no expressions to evaluate; give data that has some")
    if max_photos is None or max_photos >= len(photographs):
        return photographs
    if max_photos < 1:
        raise RefsegError(f"{max_photos} photographs cannot be scored; give at least 1")
    # The first photographs would all be of one data set.
    return [photographs[k * len(photographs) // max_photos] for k in range(max_photos)]


def _fingerprint(photographs: list[list[Numbered]]) -> str:
    """A fingerprint of the rows and their order. It does not depend on where the photographs are."""
    digest = hashlib.sha256()
    for number, row in sorted((item for rows in photographs for item in rows), key=lambda item: item[0]):
        digest.update(json.dumps([number, row.image.name, row.expression, row.counts]).encode())
    return digest.hexdigest()[:16]


def _decide(
    segmenter: Scorable,
    encoded: Any,
    rows: list[Row],
    protocol: Protocol,
    logits: Any,
    image_size: int,
    letterbox: bool,
) -> Iterator[Decided]:
    """The answers to some rows of one photograph, by their mask logits if there are any.

    Raises RefsegError if the rows are about another photograph.
    """
    answers: Sequence[Answer] = []
    if logits is None or protocol.no_target:
        answers = segmenter.segment(encoded, [row.expression for row in rows])
    for number, row in enumerate(rows):
        answer = answers[number] if answers else None
        _check_size(row, encoded.size if answer is None else answer.mask.shape)
        if logits is None:
            assert answer is not None
            mask = protocol.bring(answer.mask, image_size)
        else:  # one at a time, because probabilities at full size take much memory
            size = (row.height, row.width)
            mask = protocol.decide(logits[number : number + 1], size, image_size, letterbox=letterbox)[0]
        yield Decided(mask) if answer is None else Decided(mask, answer.score, answer.found)


def _check_size(row: Row, size: tuple[int, ...]) -> None:
    if size != (row.height, row.width):
        raise RefsegError(
            f"{row.image} is {size} but its rows say {(row.height, row.width)}; "
            "write the table again from the photographs as displayed"
        )


def _scored(report: Report, number: int, row: Row, decided: Decided) -> Scored:
    mask = row.mask()
    target = report.protocol.bring_target(mask, report.image_size or 0)
    return Scored(
        number,
        "/".join(row.image.parts[-_NAMED:]),
        count_pixels(decided.mask, target, decided.found, bool(mask.any())),
        None if decided.score is None else round(float(decided.score), 6),
        round(float(mask.mean()), 6),
        row.split or report.data,
        row.kind,
        row.siblings > 0,
    )


def _processes() -> tuple[int, int]:
    """The number of this process, and of all that torchrun started. They exchange little, so gloo is enough."""
    import torch.distributed as distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


def _gather(report: Report) -> None:
    """Gives every process the scores of all of them."""
    import torch.distributed as distributed

    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, (report.answers, report.problems, report.skipped))
    report.answers = [answer for part in parts for answer in part[0]]
    report.problems = [problem for part in parts for problem in part[1]]
    report.skipped = sum(part[2] for part in parts)
