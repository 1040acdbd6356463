"""Aggregation: three fused levels become one map. HCAM of the paper (section 3.3) and its alternatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.models.parts.convlstm import ConvLSTM
from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.fusion import Fused


class HCAM(nn.Module):
    """Hierarchical Cross-Modal Aggregation: exchange between the levels (equation 2), then Conv3D (equation 3)."""

    def __init__(
        self, width: int, dropout: float, *, words: int | None = None, slope: float = 0.1, bias: bool = False
    ) -> None:
        """`words`: channels of a word, where they are not those of a pixel, `width`; `slope`: see `JoinConv3D`.

        `bias`: whether the convolutions have one, which the batch norm behind them makes superfluous.
        """
        super().__init__()
        self.gates = nn.ModuleList(Affinity(width, dropout, words, bias) for _ in range(3))
        self.join = JoinConv3D(width, slope, bias)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        """Three fused levels, mask (B, T) → (B, C, h, w)."""
        pixels = [level for level, _ in fused]
        sentences = [average_word(words, mask) for _, words in fused]
        exchanged = []
        for i, affinity in enumerate(self.gates):
            others = [j for j in range(3) if j != i]
            affinities = affinity(pixels[i], [sentences[j] for j in others])  # Λ_ij, each (B, C, h, w)
            received = (a * pixels[j] for a, j in zip(affinities, others, strict=True))
            exchanged.append(pixels[i] + sum(received))
        return self.join(exchanged)


class Affinity(nn.Module):
    """Affinity Λ_ij of level i's pixels with level j's sentence (equation 2).

    The convolution over [pixels; tiled sentence] is linear, so its two halves are computed apart: that of
    the pixels once for both sentences, and that of the tiled sentence on a 3×3 map, which holds every case
    a zero-padded border can make.
    """

    def __init__(self, width: int, dropout: float, words: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width + (words or width), width, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, pixels: Tensor, sentences: list[Tensor]) -> list[Tensor]:
        c, (h, w) = pixels.shape[1], pixels.shape[2:]
        of_pixels = F.conv2d(pixels, self.conv.weight[:, :c], self.conv.bias, padding=1)
        rows, columns = (border_case(n, pixels.device) for n in (h, w))
        affinities = []
        for sentence in sentences:
            tiled = sentence[:, :, None, None].expand(-1, -1, 3, 3)
            of_sentence = F.conv2d(tiled, self.conv.weight[:, c:], padding=1)  # (B, C, 3, 3)
            scores = of_pixels + of_sentence.index_select(2, rows).index_select(3, columns)
            affinities.append(self.dropout(self.norm(scores)).sigmoid())
        return affinities


def border_case(length: int, device: torch.device) -> Tensor:
    """For each of `length` ≥ 2 places: 0 at the first, 2 at the last, 1 between."""
    case = torch.ones(length, dtype=torch.long, device=device)
    case[0], case[-1] = 0, 2
    return case


class JoinConv3D(nn.Module):
    """Stacks the levels along a third axis and joins them by one 3×3×3 convolution without padding along it."""

    def __init__(self, width: int, slope: float = 0.1, bias: bool = False) -> None:
        """`slope`: what the leaky ReLU at the end multiplies negative values with."""
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=(0, 1, 1), bias=bias)
        self.norm = nn.BatchNorm2d(width)
        self.slope = slope

    def forward(self, levels: list[Tensor]) -> Tensor:
        # The level axis shrinks to one, so the kernel's three slices over levels are three input groups
        # of a plain 2-D convolution, which runs faster.
        weight = self.conv.weight.transpose(1, 2).flatten(1, 2)  # (C, 3·C, 3, 3)
        joint = F.conv2d(torch.cat(levels, dim=1), weight, self.conv.bias, padding=1)
        return F.leaky_relu(self.norm(joint), self.slope)


class Conv3DAggregation(nn.Module):
    """One 3-D convolution over the stacked levels, no exchange (paper, table 2, row 5)."""

    def __init__(self, width: int, slope: float = 0.1, bias: bool = False) -> None:
        super().__init__()
        self.join = JoinConv3D(width, slope, bias)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        return self.join([pixels for pixels, _ in fused])


class ConvLSTMAggregation(nn.Module):
    """A plain convolutional LSTM that walks from the deepest level to the shallowest: four 3×3 gates and no more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * width, 4 * width, 3, padding=1)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        hidden = cell = torch.zeros_like(fused[0][0])
        for pixels, _ in reversed(fused):
            write, keep, read, new = self.gates(torch.cat([pixels, hidden], dim=1)).chunk(4, dim=1)
            cell = keep.sigmoid() * cell + write.sigmoid() * new.tanh()
            hidden = read.sigmoid() * cell.tanh()
        return hidden


class ConvLSTMOfRRN(nn.Module):
    """The ConvLSTM of RRN (Li et al., CVPR 2018), from the deepest level to the shallowest (paper, table 2, row 4)."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.walk = ConvLSTM(width, grid)

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        return self.walk([pixels for pixels, _ in reversed(fused)])


class SumAggregation(nn.Module):
    """No aggregation: the levels are added (paper, table 2, rows 1 and 3)."""

    def forward(self, fused: list[Fused], mask: Tensor) -> Tensor:
        return torch.stack([pixels for pixels, _ in fused]).sum(dim=0)
