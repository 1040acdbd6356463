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
"""Bins of the score, of equal width, in which it is compared with the IoU."""


@dataclass
class Scores:
    """Accumulates the scores of any number of expressions.

    Only integers are kept, so merging accumulators in any order gives the same numbers to the last bit.
    All scores are shares in 0..1, and NaN while nothing has been added.
    """

    protocol: Protocol = NATIVE
    pixels: list[Pixels] = field(default_factory=list)

    def add(self, prediction: Mask, target: Mask, found: bool | None = None) -> None:
        """Adds one expression; both masks on the protocol's pixels. See `count_pixels`."""
        self.pixels.append(count_pixels(prediction, target, found))

    def merge(self, other: Scores) -> None:
        """Takes over everything that was added to `other`, which must follow the same protocol."""
        if self.protocol != other.protocol:
            raise RefsegError(
                f"scores under {self.protocol.name} and {other.protocol.name} do not mix; use one protocol"
            )
        self.pixels.extend(other.pixels)

    @property
    def count(self) -> int:
        """Expressions scored: those added, without those that the protocol passes over."""
        return len(self._counted)

    @property
    def sums(self) -> tuple[int, int]:
        """Intersections and unions of all expressions, summed."""
        pairs = [self.pair(pixels) for pixels in self._counted]
        return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)

    @property
    def overall_iou(self) -> float:
        """Sum of the intersections over the sum of the unions: large referents weigh most. NaN where undefined."""
        if not self._counted or not self.protocol.overall:
            return math.nan
        intersection, union = self.sums
        return intersection / union if union else float(self.protocol.both_empty or 0.0)

    @property
    def mean_iou(self) -> float:
        """Mean of the expressions' IoUs: every expression weighs the same."""
        # A plain sum would depend on the order in its last digits.
        return _share(math.fsum(self.ious), self.count)

    @property
    def precision(self) -> dict[float, float]:
        """For each X of PRECISION_AT the share of expressions whose IoU reaches X; without those that count apart."""
        ious = [self.iou(p) for p in self._counted if p.target or not self.protocol.no_target]
        reaches: Callable[[float, float], bool] = float.__ge__ if self.protocol.precise_at_equality else float.__gt__
        return {x: _share(sum(reaches(iou, x) for iou in ious), len(ious)) for x in PRECISION_AT}

    @property
    def empty_share(self) -> float:
        """Share of the expressions that were answered with an empty mask."""
        return _share(sum(not pixels.prediction for pixels in self.pixels), len(self.pixels))

    @property
    def no_target_accuracy(self) -> float:
        """Among expressions without a referent, the share answered by "found nothing" (N-acc. of GRES)."""
        return _share(sum(not p.found for p in self.pixels if not p.target), sum(not p.target for p in self.pixels))

    @property
    def target_accuracy(self) -> float:
        """Among expressions with a referent, the share answered by a find (T-acc. of GRES)."""
        return _share(sum(p.found for p in self.pixels if p.target), sum(p.target > 0 for p in self.pixels))

    @property
    def ious(self) -> list[float]:
        """The IoU of each expression that is scored."""
        return [self.iou(pixels) for pixels in self._counted]

    def iou(self, pixels: Pixels) -> float:
        """The IoU of one expression under the protocol; NaN if it is passed over."""
        if self.protocol.no_target and not pixels.target:
            return 0.0 if pixels.found else 1.0
        intersection, union = self.pair(pixels)
        if not union:
            return math.nan if self.protocol.both_empty is None else self.protocol.both_empty
        return intersection / (union + self.protocol.smoothing)

    @property
    def _counted(self) -> list[Pixels]:
        return [pixels for pixels in self.pixels if pixels.union or self.protocol.both_empty is not None]

    def pair(self, pixels: Pixels) -> tuple[int, int]:
        """What one expression adds to the overall sums."""
        if not self.protocol.no_target:
            return pixels.intersection, pixels.union
        if not pixels.target:
            return 0, pixels.union if pixels.found else 0
        return pixels.intersection if pixels.found else 0, pixels.union


def _share(number: float, count: int) -> float:
    return number / count if count else math.nan


def calibration_error(scores: Sequence[float], ious: Sequence[float], bins: int = BINS) -> float:
    """Expected calibration error, 0..1: the mean distance of score and IoU over bins of equal width, by their size.

    Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; the IoU
    stands in the place of accuracy.
    """
    return sum(abs(score - iou) * share for score, iou, share in reliability(scores, ious, bins))


def reliability(scores: Sequence[float], ious: Sequence[float], bins: int = BINS) -> list[tuple[float, float, float]]:
    """Mean score, mean IoU and share of the answers of every bin that holds some."""
    said, reached = np.asarray(scores, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    place = np.minimum((said * bins).astype(int), bins - 1)
    return [
        (float(said[place == own].mean()), float(reached[place == own].mean()), float((place == own).mean()))
        for own in range(bins)
        if (place == own).any()
    ]
