"""The process with the model: questions in, answers ready to be sent out.

The functions `start` and `answer` run there, one at a time. A decoder that crashes ends this process and not the
server.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from refseg.errors import RefsegError
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem

if TYPE_CHECKING:
    from PIL import Image

    from refseg.segmentation import Segmentation
    from refseg.segmenter import EncodedPhoto, Segmenter

logger = logging.getLogger(__name__)
Form = Literal["rle", "png", "polygons", "overlay", "attention", "photo", "displayed"]
"""How a question is answered. The last two only encode the photograph, then describe it or send it back upright."""

WEIGHTS: dict[Form, float] = {"rle": 1, "png": 1.5, "polygons": 3, "overlay": 5}
"""What a pixel costs in each form, for each expression. 1 is about 8 ns of one core; others cost almost nothing."""
_LONGEST = 65_535
"""The longest side of a photograph, in pixels: that of a JPEG. A PNG of a single row would take gigabytes."""
_TOGETHER = 8
"""The most expressions that are computed before it is asked whether time is left."""
_MASK_PIXELS = 50_000_000
"""The most pixels of masks that are in memory at one time, if one mask alone does not have more."""


@dataclass(frozen=True)
class Question:
    """One request."""

    photo_id: str
    """SHA-256 of the file's bytes, in hexadecimal."""
    photo: bytes | None
    """The file's bytes; None where the encoded photograph is expected in the cache."""
    expressions: tuple[str, ...] = ()
    threshold: float | None = None
    form: Form = "rle"
    deadline: float = math.inf
    """When nobody waits for the answer any more, on the clock of `time.monotonic`, which processes share."""


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    content: bytes
    media_type: str = "application/json"
    cached: bool = False
    """Whether the photograph was encoded already."""


@dataclass(frozen=True)
class _Held:
    encoded: EncodedPhoto
    size: int
    """Bytes of pixels and levels."""


@dataclass
class _Turn:
    """A question on its way through a batch."""

    question: Question
    encoded: EncodedPhoto
    decode: float
    encode: float
    segment: float = 0.0
    results: list[Any] = field(default_factory=list)
    refusal: Problem | None = None

    @property
    def cached(self) -> bool:
        return self.encode == 0.0


class LoadedModel:
    """The segmenter and the photographs that it has encoded, the least recently used first."""

    def __init__(self, segmenter: Segmenter, name: str, limits: Limits) -> None:
        self.segmenter, self.name, self.limits = segmenter, name, limits
        self.held: OrderedDict[str, _Held] = OrderedDict()

    def turn(self, question: Question) -> _Turn:
        """Finds or encodes the photograph. Raises Problem or RefsegError."""
        if question.deadline <= time.monotonic():
            raise too_late(self.limits)
        if question.photo_id in self.held:
            self.held.move_to_end(question.photo_id)
            encoded = self.held[question.photo_id].encoded
            _check_work(question, *encoded.photo.size, self.limits)
            return _Turn(question, encoded, 0.0, 0.0)
        if question.photo is None:
            raise Problem(404, "this photograph is not kept, or no longer; send it again as photo")
        start = time.perf_counter()
        photo = _decode(question, question.photo, self.limits)
        decoded = time.perf_counter()
        encoded = self.segmenter.encode(photo)
        encode = time.perf_counter() - decoded
        self._hold(question.photo_id, encoded)
        return _Turn(question, encoded, decoded - start, encode)

    def _hold(self, photo_id: str, encoded: EncodedPhoto) -> None:
        levels = sum(feature.nbytes for feature in encoded.features)
        size = 4 * encoded.photo.width * encoded.photo.height + levels  # Pillow keeps 4 bytes of an RGB pixel
        if size > self.limits.cached_bytes:
            return
        self.held[photo_id] = _Held(encoded, size)
        while len(self.held) > self.limits.cached_photos or self.filled > self.limits.cached_bytes:
            self.held.popitem(last=False)

    @property
    def filled(self) -> int:
        return sum(held.size for held in self.held.values())


_model: LoadedModel | None = None


def start(load: Callable[[], Segmenter], name: str, limits: Limits) -> dict[str, Any]:
    """Loads the model and lets it answer once; returns its description. Raises what `load` raises."""
    global _model
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when it has finished what it accepted
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_server, daemon=True).start()

    from PIL import Image

    segmenter = load()
    segmenter(Image.new("RGB", (64, 64), "grey"), "anything")
    _model = LoadedModel(segmenter, name, limits)
    settings, checkpoint = segmenter.settings, segmenter.checkpoint
    return {
        "name": name,
        "architecture": settings.model_type,
        "image_size": segmenter.image_size,
        "threshold": segmenter.threshold,
        "vocabulary": len(segmenter.tokenizer),
        "max_words": segmenter.tokenizer.max_words,
        "parameters": None if checkpoint is None else checkpoint.parameters,
        "device": segmenter.engine.device,
        "training_data": settings.training_data,
        "process": os.getpid(),
    }


def _die_with_the_server() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def answer(questions: Sequence[Question]) -> tuple[list[Answer | Problem], dict[str, int]]:
    """One answer or refusal for each question, in their order, and what the cache contains.

    Photographs are taken one after the other. Questions about the same one at the same threshold share their batches.
    A question that is refused leaves the others alone.
    """
    assert _model is not None
    answers: dict[int, Answer | Problem] = {}
    groups: dict[tuple[str, float | None], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault((question.photo_id, question.threshold), []).append(number)
    for group in groups.values():
        turns: dict[int, _Turn] = {}
        for number in group:
            try:
                _check_expressions(questions[number])
                turn = _model.turn(questions[number])
                if turn.question.form in _ALONE:
                    answers[number] = _ALONE[turn.question.form](turn)
                else:
                    turns[number] = turn
            except Exception as fault:
                answers[number] = _refusal(fault)
        if turns:
            answers |= zip(turns, _segment(list(turns.values())), strict=True)
    return [answers[number] for number in range(len(questions))], {"photos": len(_model.held), "bytes": _model.filled}


def _segment(turns: list[_Turn]) -> list[Answer | Problem]:
    """The answers to questions about one photograph at one threshold, some expressions at a time.

    Masks are given their final form as soon as they are there, and a question whose time is over costs no more.
    """
    assert _model is not None
    encoded, threshold = turns[0].encoded, turns[0].question.threshold
    asked = [(turn, expression) for turn in turns for expression in turn.question.expressions]
    together = max(1, min(_TOGETHER, _MASK_PIXELS // (encoded.photo.width * encoded.photo.height)))
    began = time.perf_counter()
    for start in range(0, len(asked), together):
        for turn in turns:
            if turn.question.deadline <= time.monotonic():
                turn.refusal = turn.refusal or too_late(_model.limits)
        wanted = [(turn, expression) for turn, expression in asked[start : start + together] if turn.refusal is None]
        if wanted:
            _add_results(wanted, encoded, threshold)
    seconds = time.perf_counter() - began
    return [_finished(turn, seconds) for turn in turns]


def _add_results(wanted: list[tuple[_Turn, str]], encoded: EncodedPhoto, threshold: float | None) -> None:
    assert _model is not None
    try:
        found = _model.segmenter.segment(encoded, [expression for _, expression in wanted], threshold=threshold)
    except Exception as fault:
        for turn, _ in wanted:
            turn.refusal = _refusal(fault)
        return
    for (turn, _), segmentation in zip(wanted, found, strict=True):
        try:
            turn.results.append(_result(turn.question.form, segmentation))
        except Exception as fault:
            turn.refusal = _refusal(fault)


def _result(form: Form, segmentation: Segmentation) -> Any:
    """What a mask becomes in an answer; an overlay is drawn when all are there."""
    if form == "overlay":
        return segmentation
    result = segmentation.to_dict()
    if form != "rle":
        del result["rle"]
        result[form] = _png(segmentation) if form == "png" else segmentation.to_polygons()
    return result


def _finished(turn: _Turn, seconds: float) -> Answer | Problem:
    turn.segment = seconds
    try:
        if turn.refusal is not None:
            return turn.refusal
        if turn.question.form == "overlay":
            return _overlay(turn)
        return Answer(_json({**_head(turn), "results": turn.results}), cached=turn.cached)
    except Exception as fault:
        return _refusal(fault)


def _check_expressions(question: Question) -> None:
    from refseg.words import clean_expression

    for number, expression in enumerate(question.expressions, start=1):
        try:
            clean_expression(expression)
        except RefsegError as fault:
            which = f"expression {number}: " if len(question.expressions) > 1 else ""
            raise Problem(422, f"{which}{fault}") from None


def _decode(question: Question, content: bytes, limits: Limits) -> Image.Image:
    """The photograph as displayed. Raises Problem 413 by its header, before it is decoded, and RefsegError."""
    from PIL import Image

    from refseg.photo import FORMATS, read_photo

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise Problem(413, _too_many("more", limits.pixels)) from None
    except Exception:  # read_photo says what is wrong
        width = height = 0
    if width * height > limits.pixels:
        raise Problem(413, _too_many(f"{width}×{height}", limits.pixels))
    if max(width, height) > _LONGEST:
        raise Problem(413, f"the photograph has {width}×{height} pixels and a side's limit is {_LONGEST:,}; crop it")
    _check_work(question, width, height, limits)
    return read_photo(content)


def _too_many(size: str, pixels: float) -> str:
    return f"the photograph has {size} pixels and the limit is {pixels / 1_000_000:g} million; scale it down first"


def _check_work(question: Question, width: int, height: int, limits: Limits) -> None:
    """Raises Problem 413 if an answer would cost more than one request may."""
    each = width * height * WEIGHTS.get(question.form, 0)
    if each * len(question.expressions) > limits.work:
        most = int(limits.work // each)
        cure = f"send at most {most} at once, or a smaller photograph" if most else "scale it down first"
        raise Problem(
            413,
            f"{len(question.expressions)} expressions about {width}×{height} pixels, answered as {question.form}, "
            f"are too much for one request; {cure}",
        )


def too_late(limits: Limits) -> Problem:
    """The refusal of a question whose time is over."""
    return Problem(504, f"there was no answer within {limits.seconds:g} s; send fewer expressions or try again later")


def _refusal(fault: Exception) -> Problem:
    if isinstance(fault, Problem):
        return fault
    if isinstance(fault, RefsegError):
        return Problem(422, str(fault).replace("the photograph given as bytes", "the photograph"))
    if isinstance(fault, MemoryError):
        return Problem(413, "the photograph does not fit into the server's memory; scale it down first")
    logger.error("a question failed", exc_info=fault)
    return Problem(500, "the server made a mistake, which its log describes; please report it")


def _head(turn: _Turn) -> dict[str, Any]:
    assert _model is not None
    return {
        "model": _model.name,
        "photo_id": turn.question.photo_id,
        "size": list(turn.encoded.size),
        "cached": turn.cached,
        "timings": {name: round(getattr(turn, name), 4) for name in ("decode", "encode", "segment")},
    }


def _describe(turn: _Turn) -> Answer:
    return Answer(_json(_head(turn)), cached=turn.cached)


def _attention(turn: _Turn) -> Answer:
    assert _model is not None
    (expression,) = turn.question.expressions
    began = time.perf_counter()
    found = _model.segmenter.word_attention(turn.encoded, expression)
    turn.segment = time.perf_counter() - began
    vocabulary = _model.segmenter.tokenizer.vocabulary
    words = []
    for word, shares in found:
        spread = max(float(shares.max() - shares.min()), 1e-12)
        rows = ((shares.astype(float) - shares.min()) / spread).round(3).tolist()
        words.append({"word": word, "unknown": word not in vocabulary, "map": rows})
    return Answer(_json({**_head(turn), "words": words}), cached=turn.cached)


def _png(segmentation: Segmentation) -> str:
    """The mask as a file, 1 bit a pixel, in base64."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(segmentation.mask).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def _overlay(turn: _Turn) -> Answer:
    from refseg.segmentation import overlay

    return _picture(turn, overlay(turn.encoded.photo, turn.results))


def _displayed(turn: _Turn) -> Answer:
    return _picture(turn, turn.encoded.photo)


def _picture(turn: _Turn, image: Image.Image) -> Answer:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return Answer(content.getvalue(), "image/png", turn.cached)


_ALONE: dict[Form, Callable[[_Turn], Answer]] = {
    "attention": _attention,
    "photo": _describe,
    "displayed": _displayed,
}
"""Questions that share no batch of the network."""


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
