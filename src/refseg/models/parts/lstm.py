"""Words by an LSTM as TensorFlow 1 has it, for the networks whose authors used that."""

from __future__ import annotations

from torch import nn

from refseg.models.parts.text_encoder import TextEncoder

SMALL = 0.08
"""Fresh word vectors lie in −0.08..0.08."""


class ForgetLSTM(nn.LSTM):
    """One learned bias per gate. The forget gate has 1 added, so that it starts open; the rest starts at zero."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, batch_first=True)
        for name, weight in self.named_parameters():
            nn.init.xavier_uniform_(weight) if weight.ndim > 1 else nn.init.zeros_(weight)
            if name == "bias_hh_l0":  # PyTorch has a second bias, which here is that constant
                weight.data[width : 2 * width] = 1  # of the gates i, f, j, o
                weight.requires_grad_(False)


class ForgetLSTMEncoder(TextEncoder):
    """`TextEncoder` with that LSTM, and word vectors that start small."""

    def __init__(self, vocabulary: int, embedding: int, width: int, dropout: float, *, freeze: bool) -> None:
        super().__init__(vocabulary, embedding, width, dropout, freeze=freeze)
        self.lstm = ForgetLSTM(embedding, width)
        for vectors in self.embedding.parameters():
            nn.init.uniform_(vectors.data[1:], -SMALL, SMALL)
