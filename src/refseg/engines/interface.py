"""What every engine promises; a `Segmenter` asks for nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.words import Tokens

Floats = npt.NDArray[np.float32]
Features = tuple[Any, ...]
"""What an engine computes of one photograph: its own arrays, each with `nbytes`."""


class NoGraphError(RefsegError):
    """A network that cannot be written in the operators of ONNX."""


class Answers(NamedTuple):
    """What a network says of B expressions about one photograph."""

    mask_logits: Floats
    """(B, 1, h, w) over the network's square."""
    scores: list[float] | None = None
    """How sure a network that finds instances is of each answer, 0..1."""


class Engine(Protocol):
    """Computes a network on one kind of hardware."""

    @property
    def device(self) -> str:
        """cpu, cuda, cuda:1 or mps."""

    def encode(self, image: Floats) -> Features:
        """image (1, 3, S, S) in 0..1 → all that no word touches; it serves any number of expressions."""

    @property
    def parses(self) -> bool:
        """Whether the network reads dependency trees: `Tokens.heads`."""

    def answer(self, tokens: Tokens, features: Features) -> Answers:
        """The answers to B expressions."""

    def attention(self, tokens: Tokens, features: Features) -> Floats:
        """What attends to what: (levels, layers, N+T, N+T) for N pixels of each level and T words of one sentence.

        Queries by rows, keys by columns; pixels row by row, then words. Shares of a query's attention, 0..1, mean over
        heads, so that each row sums to 1. Raises RefsegError where the network has no such attention.
        """
