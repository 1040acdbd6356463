"""What every network promises, so that training, engines and checkpoints need not know which one they hold.

A network sees a photograph once (`encode`) and answers any number of expressions about it (`answer`). It knows no loss,
no threshold and no photograph's own size. `models.registry` finds a network by its config's `model_type`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from refseg.errors import RefsegError
from refseg.models.parts.backbone import read_backbone_config

Features = tuple[Tensor, ...]
"""All that no word touches, of a batch of I photographs: each tensor is (I, …), and the network knows their order."""
CODE = "refseg_network"
"""Module inside a checkpoint that imports its network, for AutoModel where refseg is not imported."""
_CODE_HEAD = '"""Where transformers finds the network of this checkpoint."""'


class ReferringConfig(PretrainedConfig):
    """The settings that all networks share; each adds its own, and may change a default."""

    magnification: ClassVar[int] = 1
    """Mask logits along one side of a grid cell."""
    parses: ClassVar[bool] = False
    """Whether the network reads the dependency tree of a sentence: `TokenBatch.heads`."""

    backbone_config: Any = None
    """A backbone's config or its dictionary with `model_type`; None means MobileNetV2."""
    output_stride: int | None = None
    """8, 16 or 32; dilates a ResNet. None keeps the backbone's own."""
    freeze_backbone: bool = True
    pixel_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    """Statistics of the backbone's training, for pixels in 0..1."""
    image_size: int = 320
    """Side S of the square network input, in pixels."""
    letterbox: bool = False
    """Whether photographs are scaled to fit in a black square. Else they are resized without regard to their aspect."""
    grid: int = 20
    """Side h = w of the common grid; `output_side` says how many mask logits that makes."""

    vocabulary: int = 64
    max_words: int = 25
    word_size: int = 128
    """Width of the word embedding; 300 for GloVe."""
    freeze_words: bool = False
    word_vectors: str = ""
    """Name of the file whose vectors the words started from. `refseg.load` takes more words from the same file."""

    width: int = 128
    """Channels C where pixels and words meet."""
    dropout: float = 0.1

    threshold: float = 0.5
    """Probability above which a pixel belongs to the mask."""
    calibration: dict[str, Any] | None = None
    """What `refseg calibrate` found the score to be worth; see `refseg.calibration`."""
    training_data: str = ""
    """Where the weights come from, in words: data, initialisation and recipe."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.backbone_config = read_backbone_config(self.backbone_config)
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing; see `ReferringNetwork.register_for_auto_class`."""

    @property
    def output_side(self) -> int:
        """Side of the square of mask logits."""
        return self.grid * self.magnification

    @classmethod
    def settings(cls) -> list[str]:
        """The names that a recipe may give under `model`."""
        of_transformers = {setting.name for setting in fields(PretrainedConfig)}
        return [setting.name for setting in fields(cls) if setting.name not in of_transformers]

    def check(self) -> None:
        """Raises RefsegError for the first setting that no network can have; a network's own checks follow these."""
        self.check_whole_numbers(("vocabulary", "max_words", "word_size", "width"))
        self.check_whole_numbers(("image_size",), 16, 4096)
        self.check_whole_numbers(("grid",), 2, 256)
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            numbers = len(values) == 3 and all(isinstance(value, int | float) for value in values)
            if not numbers or not all(map(math.isfinite, values)) or (name == "pixel_std" and min(values) <= 0):
                raise RefsegError(f"{name} is {values!r}; give three numbers, the backbone's statistics")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise RefsegError(f"dropout is {self.dropout!r}; give a number from 0 up to 1")

    def check_whole_numbers(self, names: Iterable[str], low: int = 1, high: int | None = None) -> None:
        """Raises RefsegError for a setting that is no int from `low` to `high`."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < low or (high is not None and value > high):
                raise RefsegError(
                    f"{name} is {value!r}; give a whole number from {low} {'up' if high is None else f'to {high}'}"
                )

    def check_choice(self, name: str, valid: Iterable[str]) -> None:
        """Raises RefsegError for a setting that is none of the valid values."""
        if getattr(self, name) not in (valid := list(valid)):
            raise RefsegError(f"unknown {name} {getattr(self, name)!r}; one of: {', '.join(valid)}")


class TokenBatch(NamedTuple):
    """B sentences as a network reads them, T the length of the longest."""

    ids: Tensor
    """(B, T) int64; 0 past a sentence's end."""
    mask: Tensor
    """(B, T) bool, True at words."""
    heads: Tensor | None = None
    """(B, T) int64, the place of each word's head in the dependency tree, the root's own; for networks that parse."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about B expressions."""

    mask_logits: Tensor
    """(B, 1, h, w) over the network's square; h = w = `ReferringConfig.output_side`."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Mask logits (B, 1, h', w') of maps on the way, by name, for losses; networks without leave it empty."""
    outlines: dict[str, Tensor] = field(default_factory=dict)
    """Logits (B, 1, h', w') of the referent's outline, by name, for losses; networks without leave it empty."""
    confidence: Tensor | None = None
    """(B,) in 0..1: how sure the network is of each answer, where it says so itself."""


class Graphs(NamedTuple):
    """A network in parts that exporters trace; see `models.graphs`."""

    encoder: nn.Module
    """images (1, 3, S, S) in 0..1 → tensors, all that no word touches."""
    decoder: nn.Module
    """ids (1, T) of one sentence, without padding, its heads (1, T) if the network parses, and these tensors → mask
    logits (1, 1, h, w)."""
    attention: nn.Module | None = None
    """As the decoder takes → as `ReferringNetwork.attention`; None where the network has none to show."""


class ReferringNetwork(PreTrainedModel):
    """A network that finds in photographs what expressions describe.

    A subclass sets `config_class` and `paper`, builds `image_encoder` and `text_encoder` among its parts, and writes
    `encode` and `answer`. It is then known to AutoConfig and AutoModel by its config's `model_type`.

    What training asks of every network, beside its answers:

    - `image_encoder.backbone` holds the pretrained part, for `backbone_weights` and `backbone_learning_rate`;
    - `image_encoder.keep_statistics` may be set to False, for a backbone that starts from random weights;
    - `text_encoder.embedding` is the table of word vectors, (vocabulary, word_size);
    - `text_encoder(ids, mask)` gives words (B, T, text_encoder.width), and `places(features)` one map: the alignment
      compares the two, and asks for nothing else.
    """

    main_input_name = "images"
    paper: ClassVar[str] = "unpublished"
    """Title and place of the publication, for model cards."""
    image_encoder: Any
    text_encoder: Any

    def __init_subclass__(cls, **keywords: Any) -> None:
        named = "config_class" in cls.__dict__  # not by a base of several networks, nor by a variant of one
        super().__init_subclass__(**keywords)
        if named:
            AutoConfig.register(cls.config_class.model_type, cls.config_class, exist_ok=True)
            AutoModel.register(cls.config_class, cls, exist_ok=True)

    @abstractmethod
    def encode(self, images: Tensor, grid: int | None = None) -> Features:
        """images (I, 3, S, S) in 0..1 → features that serve any number of expressions.

        `grid`: cells a side, where the photographs have another side than the config's `image_size`.
        """

    @abstractmethod
    def answer(self, features: Features, tokens: TokenBatch) -> Prediction:
        """What is said about B expressions; each feature is (B, …), that of the expression's photograph."""

    def places(self, features: Features) -> Tensor:
        """What is seen at each place of one grid, (I, width, h, w): here the sum of the first three features."""
        return torch.stack(features[:3]).sum(dim=0)

    def forward(
        self,
        tokens: TokenBatch,
        *,
        images: Tensor | None = None,
        features: Features | None = None,
        photo_of: Tensor | None = None,
    ) -> Prediction:
        """Answers B expressions about I photographs.

        Give images (I, 3, S, S) in 0..1, or the features that `encode` made of them. photo_of (B,) int64 names each
        expression's photograph, and may be left out where I is 1 or B. Raises RefsegError where both are missing.
        """
        if features is None:
            if images is None:
                raise RefsegError("there is no photograph; give images, or the features that encode made of them")
            features = self.encode(images)
        count = len(tokens.ids)
        return self.answer(tuple(per_expression(feature, photo_of, count) for feature in features), tokens)

    def attention(self, tokens: TokenBatch, features: Features) -> Tensor:
        """What attends to what about one sentence and one photograph, (levels, layers, N+T, N+T).

        Shares of a query's attention, 0..1: queries by rows, keys by columns; the N pixels of a level row by row, then
        the words. Raises RefsegError for a network that has none to show.
        """
        raise RefsegError("this model fuses without attention; load one whose config says fusion: sfm")

    def graphs(self) -> Graphs | None:
        """The network in parts of its own, where these answer in less time than `encode` and `answer` as they are."""
        return None

    def save_pretrained(self, save_directory: str | PathLike[str], **settings: Any) -> None:
        """Writes config and weights, and a file by which AutoModel finds the network where refseg is not imported."""
        module, network, config = type(self).__module__, type(self).__name__, self.config_class.__name__
        self.config.auto_map = {"AutoConfig": f"{CODE}.{config}", "AutoModel": f"{CODE}.{network}"}
        super().save_pretrained(save_directory, **settings)
        code = f"{_CODE_HEAD}\n\nfrom {module} import {network}\nfrom {self.config_class.__module__} import {config}\n"
        (Path(save_directory) / f"{CODE}.py").write_text(code, encoding="utf-8")

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: a checkpoint names the package and carries no copy of its source."""

    def _init_weights(self, module: Any) -> None:
        """Parts keep the initialisation that they are built with."""


def per_expression(feature: Tensor, photo_of: Tensor | None, count: int) -> Tensor:
    """The feature of each expression's photograph: (I, …) → (B, …)."""
    if photo_of is not None:
        return feature.index_select(0, photo_of)  # indexing would do, but its gradient is slow on a CPU
    return feature.expand(count, *feature.shape[1:])
