"""Where a checkpoint is (inside the package, in a folder, on the Hugging Face hub) and what it holds.

Nothing here needs PyTorch: what a program around a network must know stands in config.json and in the header of the
weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refseg.errors import RefsegError
from refseg.models.registry import NETWORKS
from refseg.words import FILE as TOKENIZER
from refseg.words import WordTokenizer

logger = logging.getLogger(__name__)

PUBLISHED = {"clipseg": "CIDAS/clipseg-rd64-refined", "sam3": "facebook/sam3"}
"""Names of other models, and where they are on the hub."""
OTHER_TYPES = ("clipseg", "sam3", "sam3_video")
"""The `model_type` of checkpoints that `refseg.models.pretrained` reads."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ENCODER, DECODER, ATTENTION = GRAPHS = ("image_encoder.onnx", "expression_decoder.onnx", "attention.onnx")
"""What ONNX Runtime computes, beside the weights; the third where the network has attention to show."""
_GRAPHS_MADE = 1
"""Counts the ways in which graphs were written: those of another way are written anew."""

_SHIPPED = Path(__file__).parent / "weights"
VARIANTS = {"street": _SHIPPED / "street"}
"""Further models inside the package, by name."""
_TERMS = {"street": "the variant street learnt from photographs that are for research only; see its MODEL_CARD section"}
_FETCHED = (
    *(CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("preprocessor_config.json", "processor_config.json", *GRAPHS),
)
"""Never a pickle: those can run code."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the library safetensors."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""The bits that are all set in infinity and NaN alone."""
_ABOUT_THE_ANSWER = ("threshold", "calibration", "training_data")
_VOLATILE = ("transformers_version", "_name_or_path", "architectures", "auto_map")


class Tensor(NamedTuple):
    """Where a tensor lies in the file of the weights."""

    dtype: str
    """As safetensors names it: F32, F16, …"""
    shape: tuple[int, ...]
    start: int
    """In bytes from the beginning of the file."""
    end: int


@dataclass(frozen=True)
class Settings:
    """What a program around a network must know of it."""

    model_type: str
    image_size: int
    """Side S of the square network input, in pixels."""
    max_words: int
    """Words of an expression that are read."""
    letterbox: bool = False
    """Whether that square shows photographs scaled to fit. Else they are resized without regard to their aspect."""
    threshold: float = 0.5
    """Probability above which a pixel belongs to the mask."""
    calibration: Mapping[str, Any] | None = None
    """See `refseg.calibration`."""
    training_data: str = ""
    """Where the weights come from, in words."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Those of a checkpoint's config.json. Raises RefsegError where a size is missing or none."""
        for name in ("image_size", "max_words"):
            value = config.get(name)
            if type(value) is not int or value < 1:
                raise RefsegError(f"{name} in {CONFIG} is {value!r}; give a whole number from 1 up")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights, and its config.json as it stands there."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def settings(self) -> Settings:
        """Raises RefsegError where config.json lacks them."""
        return Settings.from_config(self.config)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """What the file of the weights holds, by name. Raises RefsegError where it is damaged."""
        try:
            return _read_header(self.folder / WEIGHTS)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
            raise RefsegError(
                f"{self.folder} holds no usable weights in {WEIGHTS} ({fault}); copy the checkpoint again"
            ) from fault

    @cached_property
    def stamp(self) -> str:
        """The same for checkpoints of one network whose weights lie at the same places: one graph serves both."""
        values = {name: value for name, value in self.config.items() if name not in (*_ABOUT_THE_ANSWER, *_VOLATILE)}
        content = json.dumps([_GRAPHS_MADE, values, sorted(self.tensors.items())], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def digest(self) -> str:
        """The same wherever the same weights, vocabulary and config lie."""
        values = {name: value for name, value in self.config.items() if name not in _VOLATILE}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for name in (TOKENIZER, WEIGHTS):
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    @property
    def parameters(self) -> int:
        """Learnt numbers; what batch norm counts is none."""
        counted = ("running_mean", "running_var", "num_batches_tracked", "image_encoder.mean", "image_encoder.std")
        return sum(math.prod(tensor.shape) for name, tensor in self.tensors.items() if not name.endswith(counted))

    def has_graph(self, path: Path) -> bool:
        """Whether the file is a graph that was written for this network, its weights where they are now."""
        return path.is_file() and self.stamp.encode() in path.read_bytes()

    def files(self) -> list[Path]:
        """What belongs to the checkpoint, wherever else its folder holds more."""
        names = (CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "refseg_network.py")
        present = [path for name in names if (path := self.folder / name).is_file()]
        return present + [path for name in GRAPHS if self.has_graph(path := self.folder / name)]

    def read_words(self) -> WordTokenizer:
        """The vocabulary. Raises RefsegError where it is damaged or another model's."""
        tokenizer = WordTokenizer.from_pretrained(self.folder, self.settings.max_words)
        vocabulary = self.config.get("vocabulary", len(tokenizer))
        if len(tokenizer) > vocabulary:
            raise RefsegError(
                f"{self.folder} mixes two models: {len(tokenizer)} words in {TOKENIZER} and "
                f"{vocabulary} in {CONFIG}; copy one whole checkpoint"
            )
        return tokenizer

    def check_weights(self) -> None:
        """Raises RefsegError where a weight is infinite or no number."""
        with (self.folder / WEIGHTS).open("rb") as file:
            for tensor in self.tensors.values():
                if tensor.dtype in _EXPONENTS:
                    kind, bits = _EXPONENTS[tensor.dtype]
                    file.seek(tensor.start)
                    exponents = np.frombuffer(file.read(tensor.end - tensor.start), kind) & kind(bits)
                    if (exponents == bits).any():
                        raise RefsegError(
                            f"the weights in {self.folder} hold values that are not finite numbers; "
                            "copy the checkpoint again"
                        )


def find_checkpoint(model: str | PathLike[str] | None) -> Checkpoint:
    """The shipped model (None or "shipped"), or that of a folder, of a name of VARIANTS or PUBLISHED, or of a hub id.

    What is in the hub's local cache is used without the network; HF_HUB_OFFLINE=1 keeps it from being asked at all.
    Raises RefsegError where there is none, it is incomplete, its weights are a pickle, or its type is unknown.
    """
    model = None if model == "shipped" else model
    folder = _SHIPPED if model is None else _find_folder(model)
    if not (folder / CONFIG).is_file():
        raise RefsegError(f"the model folder {folder} lacks {CONFIG}; {_anew(model)}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as fault:
        raise RefsegError(f"{folder / CONFIG} cannot be read ({fault}); copy the checkpoint again") from fault
    if kind not in (*NETWORKS, *OTHER_TYPES):
        known = ", ".join((*NETWORKS, *PUBLISHED))
        raise RefsegError(f"{folder} holds a model of type {kind}; refseg reads: {known}")
    if not (folder / WEIGHTS).is_file():
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
        if pickles:
            raise RefsegError(
                f"the weights in {folder} are a pickle ({pickles[0]}), which can run code and is not read; have them "
                f"saved as {WEIGHTS}, as save_pretrained does"
            )
        raise RefsegError(f"the model folder {folder} lacks {WEIGHTS}; {_anew(model)}")
    if kind in NETWORKS and not (folder / TOKENIZER).is_file():
        raise RefsegError(f"the model folder {folder} lacks {TOKENIZER}; {_anew(model)}")
    return Checkpoint(folder, config)


def _read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError and its kin where it is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError("header too large")
        if size < 8 + length:
            raise ValueError("cut short")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensor = Tensor(entry["dtype"], tuple(entry["shape"]), start, end)
        length_in_bytes = math.prod(tensor.shape) * _SIZES[tensor.dtype]
        if not 8 + length <= start <= end <= size or end - start != length_in_bytes:
            raise ValueError(f"{name} does not fit into the file")
        tensors[name] = tensor
    return tensors


def _anew(model: str | PathLike[str] | None) -> str:
    return "install refseg anew" if model is None else "copy the whole checkpoint"


def _find_folder(model: str | PathLike[str]) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) in VARIANTS:
        logger.warning(_TERMS[str(model)])
        return VARIANTS[str(model)]
    if folder.exists():
        raise RefsegError(f"{folder} is a file; give the folder of the checkpoint")
    name = PUBLISHED.get(str(model), model)
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise RefsegError(
            f"there is no model folder {str(model)!r}; give a checkpoint's folder, a hub id 'org/name', "
            f"{' or '.join((*VARIANTS, *PUBLISHED))}"
        )
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
    except ImportError as fault:
        raise RefsegError(
            f'there is no folder {name}, and a model of the hub needs huggingface-hub; pip install "refseg[train]"'
        ) from fault

    try:
        try:
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED), local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))
    except GatedRepoError as fault:
        raise RefsegError(
            f"{name} is given to those who accept its licence; do so on its page of the hub, then run hf auth login"
        ) from fault
    except Exception as fault:  # no such repository, no network, no permission, a malformed id
        if constants.HF_HUB_OFFLINE:
            raise RefsegError(
                f"{name} is neither a folder nor in the hub's cache, and HF_HUB_OFFLINE forbids the network; "
                "unset it to download the model"
            ) from fault
        raise RefsegError(
            f"there is no folder {name} and the hub gave no model of that name; "
            "check the spelling and the network, or give a checkpoint's folder"
        ) from fault
