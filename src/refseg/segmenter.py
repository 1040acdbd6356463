"""The one inference path: the command, the server and the evaluation all segment through this file."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from refseg.calibration import Calibration, Verdict
from refseg.data.transforms import to_photograph, to_square
from refseg.errors import RefsegError
from refseg.model.fusion import SFM, word_attention
from refseg.model.shnet import SHNet, SHNetConfig
from refseg.photo import PhotoSource, read_photo
from refseg.segmentation import Segmentation
from refseg.words import UNKNOWN, Tokens, WordTokenizer

MAX_CHARACTERS = 1000
"""The longest expression that is accepted; the model reads far less of it."""

ENGINES = ("torch", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")

_SHIPPED = Path(__file__).parent / "weights"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Network(Protocol):
    """What computes: an `SHNet`, its inference form, or another engine's."""

    def encode(self, images: Tensor, /) -> tuple[Tensor, ...]:
        """images (1, 3, S, S) in 0..1 → what serves any number of expressions; first the three levels."""

    def __call__(self, ids: Tensor, mask: Tensor, *, levels: tuple[Tensor, ...]) -> Tensor:
        """Mask logits (B, 1, 4h, 4w) of expressions ids (B, T), mask (B, T)."""


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

    def __init__(
        self,
        model: SHNet,
        tokenizer: WordTokenizer,
        device: str = "cpu",
        threshold: float | None = None,
        network: Network | None = None,
    ) -> None:
        """`threshold`: the probability above which a pixel belongs to the mask; None takes the model's own.

        `network`: the form of the model that computes; None takes the one that `SHNet.optimize` chooses.
        """
        self.threshold = _check_threshold(model.config.threshold if threshold is None else threshold)
        self.device = torch.device(device)
        self.model = model.eval().to(self.device)
        self.network = network or self.model.optimize()
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
        return self._mask_logits(encoded, self.tokenizer(_clean_all(expressions)))

    @torch.inference_mode()
    def word_attention(self, encoded: EncodedPhoto, expression: str) -> list[tuple[str, npt.NDArray[np.float32]]]:
        """Each word that is read, and how much every place attends to it: (h, w) over the square input, 0..1.

        The mean over the levels of `refseg.model.fusion.word_attention`. Raises RefsegError if the model has no SFM.
        """
        fusion = self.model.fusion
        if not isinstance(fusion, SFM):
            raise RefsegError("this model fuses without attention; load one whose config says fusion: sfm")
        tokens = self.tokenizer([clean_expression(expression)])
        mask = tokens.mask.to(self.device)
        words = self.model.text_encoder(tokens.ids.to(self.device), mask)
        maps = torch.stack([word_attention(fusion, level, words, mask)[0] for level in encoded.levels[:3]]).mean(dim=0)
        unknown = iter(tokens.unknown[0])
        known = [self.tokenizer.tokenizer.id_to_token(number) or "" for number in tokens.ids[0].tolist()]
        read = [next(unknown, "") if word == UNKNOWN else word for word in known]
        return list(zip(read, maps.cpu().numpy(), strict=True))

    def _mask_logits(self, encoded: EncodedPhoto, tokens: Tokens) -> Tensor:
        ids, mask = tokens.ids.to(self.device), tokens.mask.to(self.device)
        return self.network(ids, mask, levels=encoded.levels).float()

    def _segment_batch(self, encoded: EncodedPhoto, expressions: list[str], threshold: float) -> list[Segmentation]:
        tokens = self.tokenizer(expressions)
        mask_logits = self._mask_logits(encoded, tokens)  # (B, 1, 4h, 4w)
        answers = []
        for number, expression in enumerate(expressions):
            # One at a time: at the size of a large photograph a whole batch would not fit into memory.
            probability = to_photograph(mask_logits[number : number + 1], encoded.size)[0]  # (H, W)
            mask = probability > threshold
            words, unknown = int(tokens.mask[number].sum()), tokens.unknown[number]
            if not mask.any():
                verdict = Verdict(0.0, False if self.calibration and self.calibration.found else None)
            elif self.calibration:
                verdict = self.calibration.judge(mask_logits[number], threshold, len(unknown), words)
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
    """A segmenter from the shipped model (None), a checkpoint's folder, or a Hugging Face hub id "org/name".

    A hub model that is in the local cache is used without the network. `device` is "auto" (CUDA, else MPS,
    else CPU), "cpu", "cuda", "cuda:1" or "mps". `threshold` overrides the model's own.

    `engine` "openvino" computes on the CPU by OpenVINO. `precision` "bfloat16" suits hardware that computes in it;
    "int8", for OpenVINO alone, takes its ranges from the photographs `calibrate_on`, 30 or more. docs/speed.md says
    what each gains and loses. Raises RefsegError if the checkpoint is incomplete, damaged or not an SHNet, or if the
    device or the engine is not there.
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
    folder = _SHIPPED if model is None else _find_folder(model)
    for name in _FILES:
        if not (folder / name).is_file():
            cure = "install refseg anew" if model is None else "copy the whole checkpoint"
            raise RefsegError(f"the model folder {folder} lacks {name}; {cure}")
    network = _load_network(folder)
    tokenizer = WordTokenizer.from_pretrained(folder, network.config.max_words)
    if len(tokenizer) > network.config.vocabulary:
        raise RefsegError(
            f"{folder} mixes two models: {len(tokenizer)} words in tokenizer.json and "
            f"{network.config.vocabulary} in config.json; copy one whole checkpoint"
        )
    form: Network | None = None
    if engine == "openvino":
        from refseg.openvino_engine import OpenVINONetwork

        examples = _examples(calibrate_on, tokenizer, network.config.image_size) if precision == "int8" else []
        form = OpenVINONetwork(network.eval(), precision, examples)
    elif precision == "bfloat16":
        form = _Bfloat16(network.eval().to(chosen), chosen)
    return Segmenter(network, tokenizer, chosen, threshold, form)


class _Bfloat16:
    """The plain form under PyTorch's autocast."""

    def __init__(self, model: SHNet, device: str) -> None:
        self.model, self.device = model, torch.device(device).type

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model.encode(images)

    def __call__(self, ids: Tensor, mask: Tensor, *, levels: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model(ids, mask, levels=levels)


def _examples(photos: Sequence[PhotoSource], tokenizer: WordTokenizer, side: int) -> list[tuple[Tensor, Tensor]]:
    """Each photograph's square (1, 3, S, S) with ids (1, T) of "the" and one of the vocabulary's frequent words."""
    words = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)[2:202]
    return [
        (to_square(read_photo(photo), side)[None], tokenizer([f"the {words[number % len(words)]}"]).ids)
        for number, photo in enumerate(photos)
    ]


def clean_expression(expression: object) -> str:
    """The expression in Unicode's composed form (NFC); control characters and white space become one space.

    Raises RefsegError if it is not a str, holds no visible character, has more than `MAX_CHARACTERS` characters,
    or is not valid Unicode.
    """
    if not isinstance(expression, str):
        raise RefsegError(f"an expression is a str, not a {type(expression).__name__}; give 'the red bag'")
    if len(expression) > MAX_CHARACTERS:
        raise RefsegError(
            f"the expression has {len(expression):,} characters and the limit is {MAX_CHARACTERS:,}; "
            "describe the thing in one sentence"
        )
    categories = [unicodedata.category(character) for character in expression]
    if "Cs" in categories:
        raise RefsegError("the expression holds half a character (a lone surrogate); decode the text as UTF-8")
    if all(category[0] in "CZ" for category in categories):
        raise RefsegError("the expression is empty; say what to find, such as 'the red bag'")
    plain = "".join(" " if c == "Cc" else character for character, c in zip(expression, categories, strict=True))
    return unicodedata.normalize("NFC", " ".join(plain.split()))


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


def _find_folder(model: str | PathLike[str]) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RefsegError(f"{folder} is a file; give the folder of the checkpoint")
    if not isinstance(model, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise RefsegError(f"there is no model folder {str(model)!r}; give a checkpoint's folder or a hub id 'org/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(model, allow_patterns=list(_FILES), local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(model, allow_patterns=list(_FILES)))
    except Exception as fault:  # no such repository, no network, no permission, a malformed id
        raise RefsegError(
            f"there is no folder {model} and the hub gave no model of that name; "
            "check the spelling and the network, or give a checkpoint's folder"
        ) from fault


def _load_network(folder: Path) -> SHNet:
    again = "copy the checkpoint again"
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != SHNetConfig.model_type:
            raise RefsegError(f"{folder} holds a model of type {kind}, not shnet; give an SHNet checkpoint")
        with _quiet_transformers():
            network: SHNet
            network, report = SHNet.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                output_loading_info=True,
                dtype=torch.float32,
            )
    except RefsegError:
        raise
    except Exception as fault:  # damaged JSON or safetensors, values of a config that build no network
        reason = (str(fault) or type(fault).__name__).strip().splitlines()[0]
        raise RefsegError(f"{folder} holds no usable SHNet ({reason}); {again}") from fault
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    differing = sorted(mismatched | report["missing_keys"] | report["unexpected_keys"])
    if differing:
        raise RefsegError(
            f"the weights in {folder} do not fit its config.json "
            f"({len(differing)} differ, such as {differing[0]}); {again}"
        )
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in values):
        raise RefsegError(f"the weights in {folder} hold values that are not finite numbers; {again}")
    return network


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the library's progress bar and its table of weights that do not fit; ours is one sentence."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
