"""Scores of masks: overall IoU, mean IoU and precision@X under a named protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a score depends on besides the masks; two scores compare only under the same protocol."""

    name: str
    scored_at: str
    """The pixels on which prediction and target are compared."""
    threshold: float
    """The probability that divides the prediction from the rest; whoever makes the mask applies it."""
    precise_at_equality: bool
    """Whether an IoU of exactly X counts for precision@X."""
    both_empty: float
    """The IoU of an empty prediction with an empty target."""


NATIVE = Protocol("native", "original H×W", threshold=0.5, precise_at_equality=True, both_empty=1.0)


@dataclass
class Scores:
    """Accumulates the scores of any number of expressions.

    Only integers are kept, so merging accumulators in any order gives the same numbers to the last bit.
    All scores are shares in 0..1, and NaN while nothing has been added.
    """

    protocol: Protocol = NATIVE
    pixels: list[tuple[int, int]] = field(default_factory=list)
    """Intersection and union of each expression, in pixels."""
    empty: int = 0
    """Predictions without a single pixel, whether or not that was right."""

    def add(self, prediction: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_]) -> None:
        """Adds one expression; both masks (H, W) bool. Raises RefsegError for other shapes or types."""
        if prediction.ndim != 2 or prediction.shape != target.shape:
            raise RefsegError(
                f"a prediction of shape {prediction.shape} cannot be scored against a target of shape "
                f"{target.shape}; bring both to the H×W of the photograph"
            )
        if prediction.dtype != np.bool_ or target.dtype != np.bool_:
            raise RefsegError(
                f"masks of {prediction.dtype} and {target.dtype} cannot be scored; threshold them to bool"
            )
        intersection = int(np.count_nonzero(prediction & target))
        union = int(np.count_nonzero(prediction | target))
        self.pixels.append((intersection, union))
        self.empty += not prediction.any()

    def merge(self, other: Scores) -> None:
        """Takes over everything that was added to `other`, which must follow the same protocol."""
        if self.protocol != other.protocol:
            raise RefsegError(
                f"scores under {self.protocol.name} and {other.protocol.name} do not mix; use one protocol"
            )
        self.pixels.extend(other.pixels)
        self.empty += other.empty

    @property
    def count(self) -> int:
        """Expressions added."""
        return len(self.pixels)

    @property
    def overall_iou(self) -> float:
        """Sum of the intersections over the sum of the unions: large referents weigh most."""
        if not self.pixels:
            return math.nan
        return self._iou(sum(pair[0] for pair in self.pixels), sum(pair[1] for pair in self.pixels))

    @property
    def mean_iou(self) -> float:
        """Mean of the expressions' IoUs: every expression weighs the same."""
        # A plain sum would depend on the order in its last digits.
        return math.fsum(self._ious()) / self.count if self.pixels else math.nan

    @property
    def precision(self) -> dict[float, float]:
        """For each X of PRECISION_AT the share of expressions whose IoU reaches X."""
        ious = self._ious()
        reaches: Callable[[float, float], bool] = float.__ge__ if self.protocol.precise_at_equality else float.__gt__
        return {x: self._share(sum(reaches(iou, x) for iou in ious)) for x in PRECISION_AT}

    @property
    def empty_share(self) -> float:
        """Share of the expressions that were answered with an empty mask."""
        return self._share(self.empty)

    def _share(self, number: int) -> float:
        return number / self.count if self.pixels else math.nan

    def _iou(self, intersection: int, union: int) -> float:
        return intersection / union if union else self.protocol.both_empty

    def _ious(self) -> list[float]:
        return [self._iou(*pair) for pair in self.pixels]
