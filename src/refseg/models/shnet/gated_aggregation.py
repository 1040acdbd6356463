"""The aggregations with which table 4 compares HCAM: MGATE, TGFE and GBFM, each in two forms.

The first is the small form that SHNet's authors built for their table. The second is that of the paper from which it
has its name, and is the module of that paper's network here. The levels meet on one grid, so nothing is resized. The
sentence is the mean of a level's words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.brinet import Entry, GatedFusion
from refseg.models.cmpc import Exchange
from refseg.models.parts.convlstm import ConvLSTM
from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.fusion import Fused


class MGATE(nn.Module):
    """Gated multi-level fusion after CMSA (Ye et al., CVPR 2019), in the form of SHNet's authors.

    A memory gate m_i says what level i takes from the two others, x_j and x_k, and a reset gate r_i what becomes of it:

        G_i = (1 − m_i) ∘ c_i + m_i ∘ (γ_i x_j + (1 − γ_i) x_k)
        o_i = r_i ∘ tanh(G_i) + (1 − r_i) ∘ x_i

    and the three o_i are added. One 3×3 convolution of x_i makes c_i and, per channel, both gates, with 1 added before
    the sigmoid, so that they start open; γ_i is a half. CMSA itself learns γ_i, from a half on. The words take no part.
    """

    share: Tensor | Sequence[float]

    def __init__(self, width: int, *, learnt: bool = False) -> None:
        """`learnt`: whether γ_i is learnt, as in CMSA."""
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(width, 3 * width, 3, padding=1) for _ in range(3))
        self.share = nn.Parameter(torch.full((3,), 0.5)) if learnt else (0.5, 0.5, 0.5)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels = [level for level, _ in fused]
        joint = torch.zeros_like(pixels[0])
        for i, gate in enumerate(self.gates):
            candidate, memory, reset = gate(pixels[i]).chunk(3, dim=1)
            first, second = without(pixels, i)
            received = blend(self.share[i], first, second)
            context = blend((memory + 1).sigmoid(), received, candidate)
            joint = joint + blend((reset + 1).sigmoid(), context.tanh(), pixels[i])
        return joint


class TGFE(nn.Module):
    """Text-guided feature exchange after CMPC (Huang et al., CVPR 2020), in the form of SHNet's authors.

    One exchange, whose weights all levels share, is applied twice; then the levels are added.
    """

    def __init__(self, width: int, words: int | None = None) -> None:
        """`words`: channels of a word, where they are not those of a pixel, `width`."""
        super().__init__()
        self.exchange = SharedExchange(width, words or width)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels = [level for level, _ in fused]
        sentences = [average_word(words, mask) for _, words in fused]
        for _ in range(2):
            pixels = [self.exchange(pixels[i], without(pixels, i), sentences[i]) for i in range(3)]
        return torch.stack(pixels).sum(dim=0)


class SharedExchange(nn.Module):
    """What one level takes from the others: the channels that its context c opens.

        c = relu(W [Σ_p λ_p x_p; s]), λ = softmax over the places p of relu(K x_p) · relu(Q s)
        x + Σ_j σ(U c) ∘ relu(V x_j)

    with s the sentence; c and the result are scaled to length 1.
    """

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.key = nn.Conv2d(width, width, 1)
        self.query = nn.Linear(words, width)
        self.context = nn.Linear(width + words, width)
        self.open = nn.Linear(width, width)
        self.value = nn.Conv2d(width, width, 1)

    def forward(self, pixels: Tensor, others: list[Tensor], sentence: Tensor) -> Tensor:
        """pixels and others (B, C, h, w), sentence (B, words) → (B, C, h, w)."""
        likeness = self.query(sentence).relu().unsqueeze(1) @ self.key(pixels).relu().flatten(2)  # (B, 1, hw)
        pooled = (likeness.softmax(dim=-1) @ pixels.flatten(2).mT).squeeze(1)  # (B, C)
        context = F.normalize(self.context(torch.cat([pooled, sentence], dim=1)).relu(), dim=1)
        opened = self.open(context).sigmoid()[:, :, None, None]
        received = [opened * self.value(other).relu() for other in others]
        return F.normalize(pixels + torch.stack(received).sum(dim=0), dim=1)


class TGFEOfCMPC(nn.Module):
    """As CMPC has it: two rounds of exchange, each with its own weights per level, then a ConvLSTM over the levels.

    Ours: the sentence is the mean of a level's words, for SHNet tells no entities from relations.
    """

    ROUNDS = 2

    def __init__(self, width: int, words: int, grid: int) -> None:
        """`width`: channels of a pixel, `words`: those of a word; `grid`: cells a side, see `ConvLSTM`."""
        super().__init__()
        self.exchanges = nn.ModuleList(Exchange(width, words) for _ in range(3 * self.ROUNDS))
        self.join = ConvLSTM(width, grid)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels = [level for level, _ in fused]
        sentences = [average_word(words, mask) for _, words in fused]
        for start in range(0, 3 * self.ROUNDS, 3):
            pixels = [self.exchanges[start + i](pixels[i], without(pixels, i), sentences[i]) for i in range(3)]
        return self.join(pixels)


class GBFM(nn.Module):
    """Gated bi-directional fusion after BRINet (Hu et al., CVPR 2020), in the form of SHNet's authors.

    Each level is mixed with its sentence; then they are walked from deep to shallow and from shallow to deep. The ends
    of both ways are added, and a 3×3 convolution follows. All levels and steps share their weights. Table 4
    names LSCM (Hui et al., ECCV 2020) with it, but the module of this name is BRINet's.
    """

    def __init__(self, width: int, words: int | None = None) -> None:
        """`words`: channels of a word, where they are not those of a pixel, `width`."""
        super().__init__()
        self.mix = nn.Conv2d(width + (words or width), width, 1)
        self.enter = Entry(width)
        self.join = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        levels = []
        for pixels, words in fused:
            sentence = average_word(words, mask)[:, :, None, None].expand(-1, -1, *pixels.shape[2:])
            levels.append(self.mix(torch.cat([pixels, sentence], dim=1)).relu())
        return self.join(self.walk(levels[::-1]) + self.walk(levels))

    def walk(self, levels: list[Tensor]) -> Tensor:
        """The first level enters the second and the second the third; then the former result enters the latter."""
        first, second, third = levels
        arrived: Tensor = self.enter(self.enter(first, second), self.enter(second, third))
        return arrived


class GBFMOfBRINet(nn.Module):
    """As BRINet has it: six steps of their own weights, and a ReLU at the end; the words take no further part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fuse = GatedFusion(width)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        return self.fuse([pixels for pixels, _ in fused])


def blend(gate: Tensor | float, new: Tensor, old: Tensor) -> Tensor:
    """`new` where the gate is 1, `old` where it is 0."""
    return gate * new + (1 - gate) * old


def without(levels: list[Tensor], i: int) -> list[Tensor]:
    """The two other levels."""
    return [level for j, level in enumerate(levels) if j != i]
