"""Text encoder: token ids become words (paper, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError


class TextEncoder(nn.Module):
    """Word embedding, then a one-way LSTM whose hidden state at each word is that word's feature."""

    def __init__(
        self, vocabulary: int, embedding: int | None, width: int, dropout: float, *, freeze: bool = False
    ) -> None:
        """`embedding`: size of a word's vector; None reads words as one-hot vectors. `dropout`: that of the vectors."""
        super().__init__()
        self.width = width
        self.embedding: nn.Module
        if embedding is None:
            self.embedding = OneHot(vocabulary)
            self.dropout: nn.Module = nn.Identity()  # it would drop whole words
        else:
            self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
            self.embedding.weight.requires_grad_(not freeze)
            self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding or vocabulary, width, batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T) int64, mask (B, T) True at words → (B, T, C); rows past a sentence's end are zero."""
        # One-way: what stands behind the last word cannot reach the words before it.
        # In float32 on a CPU: its bfloat16 LSTM does not run at every width.
        with torch.autocast("cpu", enabled=False):
            words, _ = self.lstm(self.dropout(self.embedding(ids)))
        return words * mask.unsqueeze(-1)


class OneHot(nn.Module):
    """Words as one-hot vectors: in the place of a table of vectors, with nothing to learn."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def weight(self) -> Tensor:
        """There is none. Raises RefsegError."""
        raise RefsegError("one-hot words have no vectors; leave out one_hot, or word_vectors, sentences and start")

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 → (B, T, vocabulary) float32; past a sentence's end, id 0, all is zero."""
        return F.one_hot(ids, self.vocabulary).float() * (ids > 0).unsqueeze(-1)


def last_word(words: Tensor, mask: Tensor) -> Tensor:
    """words (B, T, C), mask (B, T) → the sentence's last word, (B, C)."""
    last = mask.sum(dim=1).clamp(min=1) - 1
    return words[torch.arange(words.shape[0], device=words.device), last]


def average_word(words: Tensor, mask: Tensor) -> Tensor:
    """Mean over the sentence's real words, (B, C); zero for a sentence without any."""
    return (words * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
