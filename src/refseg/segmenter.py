"""The one inference path: the command, the server and the evaluation all segment through this file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from refseg.calibration import Calibration, Verdict
from refseg.checkpoints import OTHER_TYPES, find_checkpoint, read_network
from refseg.engines.fast import fastest_form
from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, ReferringNetwork, TokenBatch
from refseg.photo import PhotoSource, read_photo
from refseg.segmentation import Segmentation
from refseg.transforms import to_photograph, to_square
from refseg.words import UNKNOWN, Tokens, WordTokenizer, clean_expression

if TYPE_CHECKING:
    from refseg.models.hub import Measurement
    from refseg.models.pretrained import BytePairTokenizer, OtherModel

ENGINES = ("torch", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")


class Network(Protocol):
    """What computes: an `SHNet`, its inference form, or another engine's."""

    def encode(self, images: Tensor, /) -> tuple[Tensor, ...]:
        """images (1, 3, S, S) in 0..1 → what serves any number of expressions; first the three levels."""

    def __call__(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        """What it says about the B expressions, with what its `encode` made of one photograph."""


@dataclass(frozen=True, eq=False)
class EncodedPhoto:
    """A photograph as the network sees it; serves any number of expressions."""

    photo: Image.Image
    """As displayed, W×H RGB."""
    levels: tuple[Tensor, ...]
    """Three feature maps, each (1, C, h, w), and what else the network's form computes ahead of the words."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.photo.height, self.photo.width


class Segmenter:
    """Finds in photographs what expressions describe. `load` makes one."""

    refine: Callable[[Image.Image, Tensor], Tensor] | None = None
    """Changes an answer's probabilities (H, W) before they are decided, given the photograph; see `evaluation.crf`."""

    def __init__(
        self,
        model: ReferringNetwork | OtherModel,
        tokenizer: WordTokenizer | BytePairTokenizer,
        device: str = "cpu",
        threshold: float | None = None,
        network: Network | None = None,
    ) -> None:
        """`threshold`: the probability above which a pixel belongs to the mask; None takes the model's own.

        `network`: the form of the model that computes; None takes the fastest.
        """
        self.threshold = _check_threshold(model.config.threshold if threshold is None else threshold)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.network = network or fastest_form(self.model)
        self.tokenizer = tokenizer
        self.calibration = Calibration.from_dict(model.config.calibration)

    @property
    def image_size(self) -> int:
        """Side S of the square network input, in pixels."""
        return int(self.model.config.image_size)

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

    @torch.inference_mode()
    def encode(self, photo: PhotoSource) -> EncodedPhoto:
        """Reads a photograph and computes its levels, the expensive half of an answer."""
        displayed = read_photo(photo)
        square = to_square(displayed, self.image_size).to(self.device)  # (3, S, S)
        return EncodedPhoto(displayed, self.network.encode(square[None]))

    @torch.inference_mode()
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

    @torch.inference_mode()
    def mask_logits(self, encoded: EncodedPhoto, expressions: Sequence[str]) -> Tensor:
        """What the network says before anything is decided: (E, 1, 4h, 4w) float32 over the square input."""
        return self._answer(encoded, self.tokenizer(_clean_all(expressions)))[0]

    @torch.inference_mode()
    def attention(self, encoded: EncodedPhoto, expression: str) -> tuple[list[str], npt.NDArray[np.float32]]:
        """The T words that are read, and what attends to what in SFM: (3, layers, hw+T, hw+T), 0..1.

        See `models.interface.ReferringNetwork.attention`. Raises RefsegError if the model has no attention to show.
        """
        tokens = self.tokenizer([clean_expression(expression)])
        asked = self._asked(tokens)
        shares = self.model.attention(asked, encoded.levels[:3])
        unknown = iter(tokens.unknown[0])
        known = [self.tokenizer.tokenizer.id_to_token(number) or "" for number in tokens.ids[0].tolist()]
        return [next(unknown, "") if word == UNKNOWN else word for word in known], shares.cpu().numpy()

    def word_attention(self, encoded: EncodedPhoto, expression: str) -> list[tuple[str, npt.NDArray[np.float32]]]:
        """Each word that is read, and how much every place attends to it: (h, w) over the square input, 0..1.

        The mean of `attention` over levels and layers. Raises RefsegError if the model has no SFM.
        """
        words, shares = self.attention(encoded, expression)
        h, w = encoded.levels[0].shape[2:]
        return list(zip(words, shares.mean(axis=(0, 1))[: h * w, h * w :].T.reshape(-1, h, w), strict=True))

    def save_pretrained(
        self, folder: str | PathLike[str], *, report: Measurement | None = None, license: str = "apache-2.0"
    ) -> None:
        """Writes the checkpoint, its vocabulary and a model card (README.md); `load` reads the folder.

        `report` (see `evaluation.report.read_report`) puts its scores and their protocol on the card; `license` is the
        hub's name of the weights' licence. Raises RefsegError for a model that is another's.
        """
        from refseg.models.hub import save

        save(*self._checkpoint(), folder, report=report, license=license)

    def push_to_hub(
        self, name: str, *, report: Measurement | None = None, license: str = "apache-2.0", private: bool = False
    ) -> str:
        """Uploads what `save_pretrained` writes to the hub as "org/name"; returns the page's address.

        It needs a login (`hf auth login`) or the environment's HF_TOKEN. Raises RefsegError where the hub refuses.
        """
        from refseg.models.hub import push

        return push(*self._checkpoint(), name, report=report, license=license, private=private)

    def _checkpoint(self) -> tuple[ReferringNetwork, WordTokenizer]:
        if not isinstance(self.model, ReferringNetwork) or not isinstance(self.tokenizer, WordTokenizer):
            raise RefsegError(f"a {self.model.config.model_type} is not saved by refseg; save it with transformers")
        return self.model, self.tokenizer

    def _answer(self, encoded: EncodedPhoto, tokens: Tokens) -> tuple[Tensor, list[float] | None]:
        """Mask logits, and the scores of a network that has its own."""
        prediction = self.network(self._asked(tokens), features=encoded.levels)
        confidence = prediction.confidence
        return prediction.mask_logits.float(), None if confidence is None else confidence.tolist()

    def _asked(self, tokens: Tokens) -> TokenBatch:
        heads = None if tokens.heads is None else tokens.heads.to(self.device)
        return TokenBatch(tokens.ids.to(self.device), tokens.mask.to(self.device), heads)

    def _segment_batch(self, encoded: EncodedPhoto, expressions: list[str], threshold: float) -> list[Segmentation]:
        tokens = self.tokenizer(expressions)
        mask_logits, scores = self._answer(encoded, tokens)  # (B, 1, 4h, 4w)
        answers = []
        for number, expression in enumerate(expressions):
            # One at a time: at the size of a large photograph a whole batch would not fit into memory.
            probability = to_photograph(mask_logits[number : number + 1], encoded.size)[0]  # (H, W)
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
                    mask=mask.cpu().numpy(),
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
    engine: str = "torch",
    precision: str = "float32",
    calibrate_on: Sequence[PhotoSource] = (),
) -> Segmenter:
    """A segmenter from the shipped model (None or "shipped"), a checkpoint's folder, or a hub id "org/name".

    "clipseg" and "sam3", or a folder that holds one of them, give these models behind the same calls (docs/models.md).
    A hub model that is in the local cache is used without the network. `device` is "auto" (CUDA, else MPS,
    else CPU), "cpu", "cuda", "cuda:1" or "mps". `threshold` overrides the model's own.

    `engine` "openvino" computes on the CPU by OpenVINO. `precision` "bfloat16" suits hardware that computes in it;
    "int8", for OpenVINO alone, takes its ranges from the photographs `calibrate_on`, 30 or more. docs/speed.md says
    what each gains and loses. Raises RefsegError if the checkpoint is incomplete, damaged or of an unknown type, or
    if the device or the engine is not there.
    """
    if engine not in ENGINES:
        raise RefsegError(f"unknown engine {engine!r}; one of: {', '.join(ENGINES)}")
    if precision not in PRECISIONS or (precision == "int8" and engine != "openvino"):
        raise RefsegError(
            f"{engine} does not compute in {precision!r}; float32 and bfloat16 it does, openvino also int8"
        )
    chosen = "cpu" if engine == "openvino" and device == "auto" else _choose_device(device)
    if engine == "openvino" and chosen != "cpu":
        raise RefsegError(f"the engine openvino computes on the CPU, not on {chosen}; leave device out")
    folder, kind = find_checkpoint(model)
    if kind in OTHER_TYPES:
        if engine != "torch" or precision != "float32":
            raise RefsegError(f"{kind} is computed by torch in float32; leave engine and precision out")
        from refseg.models.pretrained import read_other

        return Segmenter(*read_other(folder, kind), chosen, threshold)
    network, tokenizer = read_network(folder, kind)
    form: Network | None = None
    if engine == "openvino":
        from refseg.engines.openvino import OpenVINONetwork

        examples = _examples(calibrate_on, tokenizer, network.config.image_size) if precision == "int8" else []
        form = OpenVINONetwork(network.eval(), precision, examples)
    elif precision == "bfloat16":
        form = _Bfloat16(fastest_form(network.to(chosen)), chosen)
    return Segmenter(network, tokenizer, chosen, threshold, form)


class _Bfloat16:
    """A form of the network under PyTorch's autocast."""

    def __init__(self, model: Network, device: str) -> None:
        self.model, self.device = model, torch.device(device).type

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model.encode(images)

    def __call__(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model(tokens, features=features)


def _examples(photos: Sequence[PhotoSource], tokenizer: WordTokenizer, side: int) -> list[tuple[Tensor, Tensor]]:
    """Each photograph's square (1, 3, S, S) with ids (1, T) of "the" and one of the vocabulary's frequent words."""
    words = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)[2:202]
    return [
        (to_square(read_photo(photo), side)[None], tokenizer([f"the {words[number % len(words)]}"]).ids)
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


def _choose_device(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise RefsegError(f"unknown device {device!r}; one of: auto, cpu, cuda, cuda:0, mps")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as fault:
        raise RefsegError(f"this machine has no usable device {device!r}; use device='auto'") from fault
    return str(device)
