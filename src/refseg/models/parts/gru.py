"""A GRU that reads sentences from both ends, whatever stands behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoWayGRU(nn.Module):
    """One GRU reads a sentence forwards, another backwards from its last word; each gives half of the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        """`width`: channels of both together, an even number."""
        super().__init__()
        self.forwards = nn.GRU(inputs, width // 2, batch_first=True)
        self.backwards = nn.GRU(inputs, width // 2, batch_first=True)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """words (B, T, inputs), mask (B, T) True at words → (B, T, width); rows past a sentence's end are zero."""
        places = torch.arange(words.shape[1], device=words.device)
        turned = (mask.sum(dim=1, keepdim=True) - 1 - places).clamp(min=0).unsqueeze(2)  # (B, T, 1), its own inverse
        # In float32 on a CPU, as the LSTM of `TextEncoder`.
        with torch.autocast("cpu", enabled=False):
            words = words.to(next(self.parameters()).dtype)
            there, _ = self.forwards(words)
            back, _ = self.backwards(words.gather(1, turned.expand_as(words)))
        return torch.cat([there, back.gather(1, turned.expand_as(back))], dim=2) * mask.unsqueeze(2)
