"""PyTorch, the engine that answers on a GPU, and on a CPU where it is asked for by name."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from refseg.engines.interface import Answers, Features, Floats
from refseg.errors import RefsegError
from refseg.models.interface import Prediction, ReferringNetwork, TokenBatch
from refseg.words import Tokens


class TorchEngine:
    """A network of `refseg.models` on any device, all expressions of a call side by side."""

    def __init__(
        self, network: Any, device: str = "cpu", precision: str = "float32", threads: int | None = None
    ) -> None:
        """`precision`: float32, or bfloat16 for hardware that computes in it; `threads` are those of this process."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = device
        self.network = network.eval().to(device)
        self.parses = isinstance(network, ReferringNetwork) and network.config.parses
        self._autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")

    @torch.inference_mode()
    def encode(self, image: Floats) -> Features:
        with self._autocast:
            return tuple(self.network.encode(self._tensor(image)))

    @torch.inference_mode()
    def answer(self, tokens: Tokens, features: Features) -> Answers:
        with self._autocast:
            said: Prediction = self.network(self._batch(tokens), features=features)
        scores = None if said.confidence is None else said.confidence.tolist()
        return Answers(said.mask_logits.float().cpu().numpy(), scores)

    @torch.inference_mode()
    def attention(self, tokens: Tokens, features: Features) -> Floats:
        shares: Floats = self.network.attention(self._batch(tokens), features).float().cpu().numpy()
        return shares

    def _batch(self, tokens: Tokens) -> TokenBatch:
        heads = None if tokens.heads is None else self._tensor(tokens.heads)
        return TokenBatch(self._tensor(tokens.ids), self._tensor(tokens.mask), heads)

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def choose_device(device: str) -> str:
    """What "auto" means here; any other name is tried out. Raises RefsegError where the machine lacks it."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as fault:
        raise RefsegError(f"this machine has no usable device {device!r}; use device='auto'") from fault
    return device
