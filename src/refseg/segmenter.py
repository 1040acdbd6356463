"""The one inference path: the command, the server and the evaluation all segment through this file."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from PIL import Image

from refseg.calibration import Calibration, Verdict
from refseg.checkpoints import OTHER_TYPES, Checkpoint, Settings, find_checkpoint
from refseg.data.parses import Parses
from refseg.engines.graphs import find_graphs
from refseg.engines.interface import Answers, Engine, Features, Floats, NoGraphError
from refseg.engines.threads import available_threads
from refseg.errors import RefsegError
from refseg.photo import PhotoSource, read_photo
from refseg.segmentation import Segmentation
from refseg.transforms import to_photograph, to_square
from refseg.words import UNKNOWN, Tokens, WordTokenizer, clean_expression

if TYPE_CHECKING:
    from refseg.models.hub import Measurement
    from refseg.models.pretrained import BytePairTokenizer

logger = logging.getLogger(__name__)

ENGINES = ("auto", "onnx", "torch", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
Refine = Callable[[Image.Image, Floats], Floats]
"""Changes an answer's probabilities (H, W) before they are decided, given the photograph; see `evaluation.crf`."""

_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What Linux shows of a driver: NVIDIA's, AMD's, and that of Windows beneath."""


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """A photograph as the network sees it; serves any number of expressions."""

    photo: Image.Image
    """As displayed, W×H RGB."""
    features: Features
    """What the engine computes ahead of the words."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.photo.height, self.photo.width


class Segmenter:
    """Finds in photographs what expressions describe. `load` makes one."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: WordTokenizer | BytePairTokenizer,
        settings: Settings,
        *,
        threshold: float | None = None,
        refine: Refine | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """`threshold`: the probability above which a pixel belongs to the mask; None takes the settings'.

        `checkpoint`: where the network was read from; None where it has no folder.
        """
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.threshold = _check_threshold(settings.threshold if threshold is None else threshold)
        self.calibration = Calibration.from_dict(settings.calibration)
        self.refine = refine
        self.checkpoint = checkpoint

    @property
    def image_size(self) -> int:
        """Side S of the square network input, in pixels."""
        return self.settings.image_size

    @property
    def letterbox(self) -> bool:
        """Whether that square shows photographs scaled to fit, on black."""
        return self.settings.letterbox

    @overload
    def __call__(self, photo: PhotoSource, expressions: str) -> Segmentation: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, photo: PhotoSource, expressions: Sequence[str]) -> list[Segmentation]: ...
    def __call__(self, photo: PhotoSource, expressions: str | Sequence[str]) -> Segmentation | list[Segmentation]:
        """One answer for one expression, a list for a list; the photograph is encoded once.

        Raises RefsegError if the photograph (see `read_photo`) or an expression (see `clean_expression`) is
        unfit.
        """
        cleaned = _clean_all([expressions] if isinstance(expressions, str) else expressions)
        answers = self.segment(self.encode(photo), cleaned)
        return answers[0] if isinstance(expressions, str) else answers

    def encode(self, photo: PhotoSource) -> EncodedPhoto:
        """Reads a photograph and computes all that no word touches, the expensive half of an answer."""
        displayed = read_photo(photo)
        square = to_square(displayed, self.image_size, letterbox=self.letterbox)  # (3, S, S)
        return EncodedPhoto(displayed, self.engine.encode(square[None]))

    def segment(
        self,
        encoded: EncodedPhoto,
        expressions: Sequence[str],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> list[Segmentation]:
        """Answers in the order of the expressions; an answer does not depend on the others in its batch.

        `threshold` overrides the segmenter's own for this call; scores are calibrated for the checkpoint's.
        """
        if not isinstance(encoded, EncodedPhoto):
            raise RefsegError("segment takes an encoded photograph; give segmenter.encode(photo)")
        if batch_size < 1:
            raise RefsegError(f"batch_size is {batch_size}; give 1 or more")
        threshold = self.threshold if threshold is None else _check_threshold(threshold)
        cleaned = _clean_all(expressions)
        answers: list[Segmentation] = []
        for start in range(0, len(cleaned), batch_size):
            answers += self._segment_batch(encoded, cleaned[start : start + batch_size], threshold)
        return answers

    def mask_logits(self, encoded: EncodedPhoto, expressions: Sequence[str]) -> Floats:
        """What the network says before anything is decided: (E, 1, 4h, 4w) over the square input."""
        return self._answer(encoded, self.tokenizer(_clean_all(expressions))).mask_logits

    def attention(self, encoded: EncodedPhoto, expression: str) -> tuple[list[str], Floats]:
        """The T words that are read, and what attends to what: (3, layers, N+T, N+T), 0..1.

        See `engines.interface.Engine.attention`. Raises RefsegError if the model has no SFM.
        """
        tokens = self.tokenizer([clean_expression(expression)])
        shares = self.engine.attention(tokens, encoded.features)
        unknown = iter(tokens.unknown[0])
        known = [self.tokenizer.tokenizer.id_to_token(number) or "" for number in tokens.ids[0].tolist()]
        return [next(unknown, "") if word == UNKNOWN else word for word in known], shares

    def word_attention(self, encoded: EncodedPhoto, expression: str) -> list[tuple[str, Floats]]:
        """Each word that is read, and how much every place attends to it: (h, w) over the square input, 0..1.

        The mean of `attention` over levels and layers. Raises RefsegError if the model has no SFM.
        """
        words, shares = self.attention(encoded, expression)
        pixels = shares.shape[-1] - len(words)
        side = math.isqrt(pixels)
        maps = shares.mean(axis=(0, 1))[:pixels, pixels:].T.reshape(-1, side, side)
        return list(zip(words, maps, strict=True))

    def save_pretrained(
        self, folder: str | PathLike[str], *, report: Measurement | None = None, license: str = "apache-2.0"
    ) -> None:
        """Writes the checkpoint, its vocabulary and a model card (README.md); `load` reads the folder.

        `report` (see `evaluation.report.read_report`) puts its scores and their protocol on the card; `license` is the
        hub's name of the weights' licence. Raises RefsegError for a model that is another's.
        """
        from refseg.models.hub import save

        save(self._own_checkpoint(), folder, report=report, license=license)

    def push_to_hub(
        self, name: str, *, report: Measurement | None = None, license: str = "apache-2.0", private: bool = False
    ) -> str:
        """Uploads what `save_pretrained` writes to the hub as "org/name"; returns the page's address.

        It needs a login (`hf auth login`) or the environment's HF_TOKEN. Raises RefsegError where the hub refuses.
        """
        from refseg.models.hub import push

        return push(self._own_checkpoint(), name, report=report, license=license, private=private)

    def _own_checkpoint(self) -> Checkpoint:
        if self.checkpoint is None:
            raise RefsegError("this segmenter was read from no folder; save its network, and load that")
        if self.checkpoint.model_type in OTHER_TYPES:
            raise RefsegError(f"a {self.checkpoint.model_type} is not saved by refseg; save it with transformers")
        return self.checkpoint

    def _answer(self, encoded: EncodedPhoto, tokens: Tokens) -> Answers:
        return self.engine.answer(tokens, encoded.features)

    def _segment_batch(self, encoded: EncodedPhoto, expressions: list[str], threshold: float) -> list[Segmentation]:
        tokens = self.tokenizer(expressions)
        mask_logits, scores = self._answer(encoded, tokens)  # (B, 1, 4h, 4w)
        answers = []
        for number, expression in enumerate(expressions):
            # One at a time: at the size of a large photograph a whole batch would not fit into memory.
            logits, within = mask_logits[number : number + 1], self.image_size if self.letterbox else None
            probability = to_photograph(logits, encoded.size, letterbox=within)[0]  # (H, W)
            if self.refine:
                probability = self.refine(encoded.photo, probability)
            mask = probability > threshold
            words, unknown = int(tokens.mask[number].sum()), tokens.unknown[number]
            if not mask.any():
                verdict = Verdict(0.0, False if self.calibration and self.calibration.found else None)
            elif self.calibration:
                verdict = self.calibration.judge(mask_logits[number], threshold, len(unknown), words)
            elif scores is not None:
                verdict = Verdict(scores[number], None)
            else:
                verdict = Verdict(min(float(probability[mask].mean()), 1.0), None)
            answers.append(
                Segmentation(
                    expression=expression,
                    mask=mask,
                    score=verdict.score,
                    photo=encoded.photo,
                    unknown_words=unknown,
                    truncated=tokens.truncated[number],
                    found=verdict.found,
                )
            )
        return answers


def load(
    model: str | PathLike[str] | None = None,
    *,
    device: str = "auto",
    threshold: float | None = None,
    engine: str = "auto",
    precision: str = "float32",
    threads: int | None = None,
    refine: Refine | None = None,
    calibrate_on: Sequence[PhotoSource] = (),
    word_vectors: str | PathLike[str] | None = None,
) -> Segmenter:
    """A segmenter from the shipped model (None or "shipped"), a checkpoint's folder, or a hub id "org/name".

    "clipseg" and "sam3", or a folder that holds one of them, give these models behind the same calls (docs/models.md).
    A hub model that is in the local cache is used without the network. `device` is "auto" (CUDA, else MPS,
    else CPU), "cpu", "cuda", "cuda:1" or "mps". `threshold` overrides the model's own.

    On a CPU ONNX Runtime answers, on a GPU PyTorch; `engine` "onnx", "torch" or "openvino" asks for one by name.
    `threads` are those that compute on a CPU; None takes the processors that this process is given, its control group's
    quota included. `precision` "bfloat16" suits hardware that computes in it, and PyTorch or OpenVINO computes in it;
    "int8", for OpenVINO alone, takes its ranges from the photographs `calibrate_on`, 30 or more. docs/speed.md says
    what each gains and loses. `refine` changes an answer's probabilities before they are decided (`evaluation.crf`).

    `word_vectors` is the text file in GloVe's format from which the model's own words started in their training. All
    its words are then understood, also those that no sentence of the training has; PyTorch computes.

    Raises RefsegError if the checkpoint is incomplete, damaged or of an unknown type, if the vectors are not those that
    the model learnt with, or if the device, the engine or a library is not there.
    """
    _check_choice(engine, precision, threads)
    chosen = _choose_device(device, engine)
    checkpoint = find_checkpoint(model)
    other = checkpoint.model_type in OTHER_TYPES
    if other and (engine not in ("auto", "torch") or precision != "float32"):
        raise RefsegError(f"{checkpoint.model_type} is computed by torch in float32; leave engine and precision out")
    if word_vectors is not None:
        if other or engine in ("onnx", "openvino"):
            raise RefsegError("word_vectors are for networks that torch computes; leave engine out, or word_vectors")
        engine = "torch"
    if engine == "auto" and not other and chosen == "cpu" and precision == "float32":
        try:
            find_graphs(checkpoint)
            engine = "onnx"
        except NoGraphError as fault:
            logger.warning("%s; it does so here", fault)
    computing: Engine
    words: WordTokenizer | BytePairTokenizer
    if engine in ("auto", "torch"):
        computing, words, settings = _by_torch(checkpoint, chosen, precision, threads, word_vectors)
    else:
        words, settings = checkpoint.read_words(), checkpoint.settings
        if engine == "onnx":
            from refseg.engines.onnx import OnnxEngine

            computing = OnnxEngine.of(checkpoint, threads or available_threads())
        else:
            from refseg.engines.openvino import OpenVINOEngine

            examples = _examples(calibrate_on, words, settings) if precision == "int8" else []
            computing = OpenVINOEngine(checkpoint, precision, threads or available_threads(), examples)
    if computing.parses and isinstance(words, WordTokenizer):
        words.parse = Parses()
    return Segmenter(computing, words, settings, threshold=threshold, refine=refine, checkpoint=checkpoint)


def _by_torch(
    checkpoint: Checkpoint,
    device: str,
    precision: str,
    threads: int | None,
    word_vectors: str | PathLike[str] | None,
) -> tuple[Engine, WordTokenizer | BytePairTokenizer, Settings]:
    _need_torch()
    from refseg.engines.torch import TorchEngine

    if device == "cpu":
        threads = threads or available_threads()
    if checkpoint.model_type in OTHER_TYPES:
        from refseg.models.pretrained import read_other

        other, tokens = read_other(checkpoint)
        return TorchEngine(other, device, precision, threads), tokens, other.settings
    from refseg.models.reading import read_network

    network, words = read_network(checkpoint), checkpoint.read_words()
    if word_vectors is not None:
        from refseg.models.vectors import add_words

        words = add_words(network, words, Path(word_vectors))
    return TorchEngine(network, device, precision, threads), words, checkpoint.settings


def _examples(photos: Sequence[PhotoSource], words: WordTokenizer, settings: Settings) -> list[tuple[Floats, Tokens]]:
    """Each photograph's square (1, 3, S, S) with a sentence of "the" and one of the vocabulary's frequent words."""
    frequent = sorted(words.vocabulary, key=words.vocabulary.__getitem__)[2:202]
    tree = np.array([[1, 1]])  # "the" depends on what follows
    return [
        (
            to_square(read_photo(photo), settings.image_size, letterbox=settings.letterbox)[None],
            replace(words([f"the {frequent[number % len(frequent)]}"]), heads=tree),
        )
        for number, photo in enumerate(photos)
    ]


def _clean_all(expressions: Sequence[str]) -> list[str]:
    if isinstance(expressions, str | bytes) or not isinstance(expressions, Sequence):
        raise RefsegError(f"expressions are a list, not a {type(expressions).__name__}; give ['the red bag']")
    return [clean_expression(expression) for expression in expressions]


def _check_threshold(threshold: object) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise RefsegError(f"the threshold is {threshold!r}; give a number between 0 and 1, such as 0.5")
    return float(threshold)


def _check_choice(engine: str, precision: str, threads: int | None) -> None:
    if engine not in ENGINES:
        raise RefsegError(f"unknown engine {engine!r}; one of: {', '.join(ENGINES)}")
    computed = {"onnx": PRECISIONS[:1], "openvino": PRECISIONS}.get(engine, PRECISIONS[:2])
    if precision not in computed:
        raise RefsegError(
            f"{engine} does not compute in {precision!r}; onnx computes in float32, torch in float32 and bfloat16, "
            "openvino also int8"
        )
    if threads is not None and (type(threads) is not int or threads < 1):
        raise RefsegError(f"threads is {threads!r}; give a whole number from 1 up")


def _choose_device(device: str, engine: str) -> str:
    """The device to compute on; PyTorch is only asked where there could be another than the CPU."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(device)):
        raise RefsegError(f"unknown device {device!r}; one of: auto, cpu, cuda, cuda:0, mps")
    on_cpu = engine in ("onnx", "openvino")
    if on_cpu and device not in ("auto", "cpu"):
        raise RefsegError(f"the engine {engine} computes on the CPU, not on {device}; leave device out")
    could_be = sys.platform != "linux" or any(Path(driver).exists() for driver in _GPUS)
    if on_cpu or device == "cpu" or (device == "auto" and not (could_be and find_spec("torch"))):
        return "cpu"
    _need_torch()
    from refseg.engines.torch import choose_device

    return choose_device(device)


def _need_torch() -> None:
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise RefsegError(
            'this device or model is computed by PyTorch, which is not installed; pip install "refseg[train]"'
        )
