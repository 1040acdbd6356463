"""The aggregations of other papers with which table 4 compares HCAM: MGATE, TGFE and GBFM.

Written from their papers' equations; where those are silent, a docstring says what their authors' released code does
and what is ours. The levels meet on one grid, so nothing is resized here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.aggregation import ConvLSTMAggregation
from refseg.models.shnet.fusion import Fused


class MGATE(nn.Module):
    """Gated multi-level fusion of CMSA (Ye et al., CVPR 2019).

    A memory gate m_i says what level i takes from the two others, x_j and x_k, and a reset gate r_i what becomes of it:

        G_i = (1 − m_i) ∘ c_i + m_i ∘ (γ_i x_j + (1 − γ_i) x_k)
        o_i = r_i ∘ tanh(G_i) + (1 − r_i) ∘ x_i

    and the three o_i are added. As in the released code, one 3×3 convolution of x_i makes c_i and, per channel, both
    gates, with 1 added before the sigmoid, so that they start open; γ_i is learned and starts at a half. The words take
    no part.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(width, 3 * width, 3, padding=1) for _ in range(3))
        self.share = nn.Parameter(torch.full((3,), 0.5))

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
    """Text-guided feature exchange of CMPC (Huang et al., CVPR 2020), then a ConvLSTM over the levels.

    As in the released code there are two rounds of exchange, each with its own weights per level. Ours: the sentence
    is the mean of a level's words, for SHNet tells no entities from relations, and the ConvLSTM is that of table 2.
    """

    ROUNDS = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.exchanges = nn.ModuleList(Exchange(width) for _ in range(3 * self.ROUNDS))
        self.join = ConvLSTMAggregation(width)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels, words = zip(*fused, strict=True)
        sentences = [average_word(level, mask) for level in words]
        for start in range(0, 3 * self.ROUNDS, 3):
            pixels = tuple(self.exchanges[start + i](pixels[i], without(pixels, i), sentences[i]) for i in range(3))
        return self.join(list(zip(pixels, words, strict=True)), mask)


class Exchange(nn.Module):
    """What one level takes from the others in one round of TGFE: the channels that its context c opens.

        c = W [Σ_p λ_p x_p; s], λ = softmax over the places p of x_p · Q s / √C
        x + Σ_j σ(U c) ∘ relu(V x_j)

    with s the sentence; c and the result are scaled to length 1. Ours: one matrix Q stands for the two, of pixels and
    sentence, of which only the product acts; the others share U and V.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.context = nn.Linear(2 * width, width)
        self.open = nn.Linear(width, width)
        self.value = nn.Conv2d(width, width, 1)

    def forward(self, pixels: Tensor, others: list[Tensor], sentence: Tensor) -> Tensor:
        """pixels and others (B, C, h, w), sentence (B, C) → (B, C, h, w)."""
        places = pixels.flatten(2)  # (B, C, hw)
        likeness = self.query(sentence).unsqueeze(1) @ places / places.shape[1] ** 0.5  # (B, 1, hw)
        pooled = (likeness.softmax(dim=-1) @ places.mT).squeeze(1)  # (B, C)
        context = F.normalize(self.context(torch.cat([pooled, sentence], dim=1)), dim=1)
        opened = self.open(context).sigmoid()[:, :, None, None]
        received = torch.stack([opened * self.value(other).relu() for other in others]).sum(dim=0)
        return F.normalize(pixels + received, dim=1)


class GBFM(nn.Module):
    """Gated bi-directional fusion: the levels are walked from deep to shallow and from shallow to deep.

    Table 4 names LSCM (Hui et al., ECCV 2020) beside it, but the module of this name is that of BRINet (Hu et al.,
    CVPR 2020), and so is this one. On each way, the first level enters the second and the second the third;
    then the former result enters the latter. The two ways' ends are added, and a 3×3 convolution follows, as in the
    released code. The words have reached the pixels before and take no further part.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bottom_up = nn.ModuleList(Entry(width) for _ in range(3))
        self.top_down = nn.ModuleList(Entry(width) for _ in range(3))
        self.join = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels = [level for level, _ in fused]
        ends = [
            last(first(start, middle), second(middle, end))
            for (first, second, last), (start, middle, end) in (
                (self.bottom_up, pixels),
                (self.top_down, pixels[::-1]),
            )
        ]
        return self.join(ends[0] + ends[1]).relu()


class Entry(nn.Module):
    """One level enters another through a gate that both decide: σ(conv 3×3 of relu(conv 1×1 of [x; y])) ∘ x + y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.meet = nn.Conv2d(2 * width, width, 1)
        self.gate = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        joint = self.meet(torch.cat([source, target], dim=1)).relu()
        return self.gate(joint).sigmoid() * source + target


def blend(gate: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where the gate is 1, `old` where it is 0."""
    return gate * new + (1 - gate) * old


def without(levels: list[Tensor] | tuple[Tensor, ...], i: int) -> list[Tensor]:
    """The two other levels."""
    return [level for j, level in enumerate(levels) if j != i]
