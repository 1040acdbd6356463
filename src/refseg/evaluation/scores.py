"""Scores of masks under a protocol: overall IoU, mean IoU and precision@X."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from refseg.errors import RefsegError
from refseg.evaluation.protocols import NATIVE, Pixels, Protocol, count_pixels
from refseg.masks import Mask

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 10
"""The number of bins, of equal width, in which the score is compared with the IoU."""


@dataclass
class Scores:
    """Accumulates the scores of any number of expressions.

    Only integers are kept, so merging accumulators in any order gives the same numbers to the last bit.
    All scores are shares in 0..1. They are NaN while nothing has been added.
    """

    protocol: Protocol = NATIVE
    pixels: list[Pixels] = field(default_factory=list)

    def add(self, prediction: Mask, target: Mask, found: bool | None = None, referent: bool | None = None) -> None:
        """Adds one expression. Both masks are on the protocol's pixels. See `count_pixels`."""
        self.pixels.append(count_pixels(prediction, target, found, referent))

    def merge(self, other: Scores) -> None:
        """Adds everything that was added to `other`. Raises RefsegError if `other` follows another protocol."""
        if self.protocol != other.protocol:
            raise RefsegError(
                f"scores under {self.protocol.name} and {other.protocol.name} do not mix; use one protocol"
            )
        self.pixels.extend(other.pixels)

    @property
    def count(self) -> int:
        """Number of expressions that are scored. The protocol may leave some out."""
        return len(self._counted)

    @property
    def sums(self) -> tuple[int, int]:
        """The sum of all intersections and the sum of all unions, in pixels."""
        pairs = [self.pair(pixels) for pixels in self._counted]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    @property
    def overall_iou(self) -> float:
        """Sum of the intersections over the sum of the unions (cIoU of GRES). Large referents weigh most.

        NaN where the protocol has none.
        """
        if not self._counted or not self.protocol.overall:
            return math.nan
        intersection, union = self.sums
        return intersection / union if union else float(self.protocol.both_empty or 0.0)

    @property
    def mean_iou(self) -> float:
        """Mean of the expressions' IoUs (gIoU of GRES). Every expression weighs the same."""
        # A plain sum would depend on the order in its last digits.
        return _share(math.fsum(self.ious), self.count)

    @property
    def precision(self) -> dict[float, float]:
        """For each X of PRECISION_AT, the share of expressions whose IoU reaches X.

        Expressions that count apart, because they have no referent, are left out.
        """
        ious = [self.iou(p) for p in self._counted if p.referent or not self.protocol.no_target]
        reaches: Callable[[float, float], bool] = float.__ge__ if self.protocol.precise_at_equality else float.__gt__
        bounds = {x: float(np.float32(x)) if self.protocol.float32 else x for x in PRECISION_AT}
        return {x: _share(sum(reaches(iou, bound) for iou in ious), len(ious)) for x, bound in bounds.items()}

    @property
    def empty_share(self) -> float:
        """Share of all expressions that were answered with an empty mask."""
        return _share(sum(not pixels.prediction for pixels in self.pixels), len(self.pixels))

    @property
    def no_target_accuracy(self) -> float:
        """Of the expressions without a referent, the share answered by "found nothing" (N-acc of GRES)."""
        rejected = [not pixels.found for pixels in self.pixels if not pixels.referent]
        return _share(sum(rejected), len(rejected))

    @property
    def target_accuracy(self) -> float:
        """Of the expressions with a referent, the share answered by a find (T-acc of GRES)."""
        accepted = [pixels.found for pixels in self.pixels if pixels.referent]
        return _share(sum(accepted), len(accepted))

    @property
    def ious(self) -> list[float]:
        """The IoU of each expression that is scored."""
        return [self.iou(pixels) for pixels in self._counted]

    def iou(self, pixels: Pixels) -> float:
        """The IoU of one expression under the protocol, 0..1. NaN if the protocol leaves the expression out."""
        if self.protocol.no_target and not pixels.referent:
            return 0.0 if pixels.found else 1.0
        intersection, union = self.pair(pixels)
        if union:
            return intersection / (union + self.protocol.smoothing)
        if self.protocol.no_target:  # the referent was not found, and the square has no pixel of it left
            return 0.0
        return math.nan if self.protocol.both_empty is None else self.protocol.both_empty

    @property
    def _counted(self) -> list[Pixels]:
        return [pixels for pixels in self.pixels if pixels.union or self.protocol.both_empty is not None]

    def pair(self, pixels: Pixels) -> tuple[int, int]:
        """The intersection and the union that one expression adds to the overall sums, in pixels."""
        if not self.protocol.no_target:
            return pixels.intersection, pixels.union
        if not pixels.referent:
            return 0, pixels.union if pixels.found else 0
        return pixels.intersection if pixels.found else 0, pixels.union


def _share(number: float, count: int) -> float:
    return number / count if count else math.nan


def calibration_error(scores: Sequence[float], ious: Sequence[float], bins: int = BINS) -> float:
    """Expected calibration error, 0..1: the mean distance between score and IoU over bins, weighted by their size.

    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015. The IoU
    takes the place of accuracy.
    """
    return sum(abs(score - iou) * share for score, iou, share in reliability(scores, ious, bins))


def reliability(scores: Sequence[float], ious: Sequence[float], bins: int = BINS) -> list[tuple[float, float, float]]:
    """Mean score, mean IoU and share of the answers of every bin that is not empty. All three are 0..1."""
    score, iou = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    bin_of = np.minimum((score * bins).astype(int), bins - 1)
    members = [bin_of == number for number in range(bins)]
    return [(float(score[of].mean()), float(iou[of].mean()), float(of.mean())) for of in members if of.any()]
