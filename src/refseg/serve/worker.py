"""The process that holds the model: questions in, answers ready to be sent out.

The functions `start` and `answer` run there, one at a time. A decoder that crashes takes this process with
it and not the server.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""How a question is answered; the last two only encode the photograph, and describe it or send it back upright."""


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

    @property
    def cached(self) -> bool:
        return self.encode == 0.0


class LoadedModel:
    """The segmenter and the photographs that it has encoded, least recently used first."""

    def __init__(self, segmenter: Segmenter, name: str, limits: Limits) -> None:
        self.segmenter, self.name, self.limits = segmenter, name, limits
        self.held: OrderedDict[str, _Held] = OrderedDict()

    def turn(self, question: Question) -> _Turn:
        """Finds or encodes the photograph. Raises Problem or RefsegError."""
        if question.photo_id in self.held:
            self.held.move_to_end(question.photo_id)
            return _Turn(question, self.held[question.photo_id].encoded, 0.0, 0.0)
        if question.photo is None:
            raise Problem(404, "this photograph is not held, or no longer; send it again as photo")
        start = time.perf_counter()
        photo = _decode(question.photo, self.limits.pixels)
        decoded = time.perf_counter()
        encoded = self.segmenter.encode(photo)
        encode = time.perf_counter() - decoded
        self._hold(question.photo_id, encoded)
        return _Turn(question, encoded, decoded - start, encode)

    def _hold(self, photo_id: str, encoded: EncodedPhoto) -> None:
        levels = sum(level.numel() * level.element_size() for level in encoded.levels)
        size = 3 * encoded.photo.width * encoded.photo.height + levels
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
    config = segmenter.model.config
    return {
        "name": name,
        "architecture": config.model_type,
        "image_size": segmenter.image_size,
        "threshold": segmenter.threshold,
        "vocabulary": len(segmenter.tokenizer),
        "max_words": segmenter.tokenizer.max_words,
        "parameters": segmenter.model.num_parameters(),
        "device": str(segmenter.device),
        "training_data": config.training_data,
        "process": os.getpid(),
    }


def _die_with_the_server() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def answer(questions: Sequence[Question]) -> tuple[list[Answer | Problem], dict[str, int]]:
    """One answer or refusal for each question, in their order, and what the cache holds.

    Questions about the same photograph at the same threshold share their batches; a question that is
    refused leaves the others alone.
    """
    assert _model is not None
    answers: list[Answer | Problem | None] = [None] * len(questions)
    groups: dict[tuple[str, float | None], list[tuple[int, _Turn]]] = {}
    for number, question in enumerate(questions):
        try:
            _check_expressions(question)
            turn = _model.turn(question)
            if question.form in _ALONE:
                answers[number] = _ALONE[question.form](turn)
            else:
                groups.setdefault((question.photo_id, question.threshold), []).append((number, turn))
        except Exception as fault:
            answers[number] = _refusal(fault)
    for group in groups.values():
        for (number, _), reply in zip(group, _segment([turn for _, turn in group]), strict=True):
            answers[number] = reply
    return [reply for reply in answers if reply is not None], {"photos": len(_model.held), "bytes": _model.filled}


def _segment(turns: list[_Turn]) -> list[Answer | Problem]:
    """The answers to questions about one photograph at one threshold."""
    assert _model is not None
    expressions = [expression for turn in turns for expression in turn.question.expressions]
    began = time.perf_counter()
    try:
        found = iter(_model.segmenter.segment(turns[0].encoded, expressions, threshold=turns[0].question.threshold))
    except Exception as fault:
        return [_refusal(fault) for _ in turns]
    seconds = time.perf_counter() - began
    replies: list[Answer | Problem] = []
    for turn in turns:
        turn.segment = seconds
        mine = [next(found) for _ in turn.question.expressions]
        try:
            replies.append(_overlay(turn, mine) if turn.question.form == "overlay" else _results(turn, mine))
        except Exception as fault:
            replies.append(_refusal(fault))
    return replies


def _check_expressions(question: Question) -> None:
    from refseg.words import clean_expression

    for number, expression in enumerate(question.expressions, start=1):
        try:
            clean_expression(expression)
        except RefsegError as fault:
            which = f"expression {number}: " if len(question.expressions) > 1 else ""
            raise Problem(422, f"{which}{fault}") from None


def _decode(content: bytes, pixels: float) -> Image.Image:
    """The photograph as displayed. Raises Problem 413 by the header alone, and RefsegError."""
    from PIL import Image

    from refseg.photo import FORMATS, read_photo

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise Problem(413, _too_many("more", pixels)) from None
    except Exception:  # read_photo says what is wrong
        width = height = 0
    if width * height > pixels:
        raise Problem(413, _too_many(f"{width}×{height}", pixels))
    return read_photo(content)


def _too_many(size: str, pixels: float) -> str:
    return f"the photograph has {size} pixels and the limit is {pixels / 1_000_000:g} million; scale it down first"


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


def _results(turn: _Turn, found: list[Segmentation]) -> Answer:
    form = turn.question.form
    results = []
    for segmentation in found:
        result = segmentation.to_dict()
        if form != "rle":
            del result["rle"]
            result[form] = _png(segmentation) if form == "png" else segmentation.to_polygons()
        results.append(result)
    return Answer(_json({**_head(turn), "results": results}), cached=turn.cached)


def _png(segmentation: Segmentation) -> str:
    """The mask as a file, 1 bit a pixel, in base64."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(segmentation.mask).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def _overlay(turn: _Turn, found: list[Segmentation]) -> Answer:
    from refseg.segmentation import overlay

    return _picture(turn, overlay(turn.encoded.photo, found))


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
