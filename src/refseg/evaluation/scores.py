"""Scores of masks under named protocols: overall IoU, mean IoU and precision@X.

A protocol says on which pixels prediction and target meet, what is decided there, and what the doubtful cases count.
docs/protocols.md has the table and shows how far the protocols differ for the same predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import RefsegError
from refseg.transforms import to_photograph

Mask = npt.NDArray[np.bool_]
PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 10
"""Bins of the score, of equal width, in which it is compared with the IoU."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a score depends on besides the masks; two scores compare only under the same protocol."""

    name: str
    scored_at: str
    """The pixels on which prediction and target are compared, in words."""
    threshold: float
    """A pixel belongs to the prediction where its probability is greater."""
    precise_at_equality: bool
    """Whether an IoU of exactly X counts for precision@X."""
    both_empty: float | None
    """The IoU of an empty prediction with an empty target; None passes the expression over."""
    square: int | Literal["half"] | None = None
    """Side of the square on which masks are scored, or "half" the network's; None: the photograph's own pixels."""
    target: Literal["nearest", "touched"] = "nearest"
    """How a target comes to the square: the nearest pixel, or every pixel that bilinear resizing leaves above 0."""
    bicubic: bool = False
    """Whether probabilities are resized, bicubically, by way of the network's square; else logits, bilinearly."""
    smoothing: float = 0.0
    """Added to every union before the division."""
    overall: bool = True
    """Whether the protocol knows an overall IoU."""
    no_target: bool = False
    """Whether expressions without a referent count apart, and "found nothing" is an answer of its own."""

    def size(self, photograph: tuple[int, int], image_size: int) -> tuple[int, int]:
        """Height and width of the pixels that are scored; photograph is (H, W), image_size the network's square."""
        if self.square is None:
            return photograph
        side = image_size // 2 if self.square == "half" else self.square
        return side, side

    def decide(self, mask_logits: Tensor, photograph: tuple[int, int], image_size: int) -> npt.NDArray[np.bool_]:
        """Predictions (E, H', W') bool from mask logits (E, 1, h, w) over the network's square."""
        size = self.size(photograph, image_size)
        if self.bicubic:
            probability = mask_logits.float().sigmoid()
            for step in ((image_size, image_size), size):
                probability = F.interpolate(probability, size=step, mode="bicubic", align_corners=False)
            probability = probability.squeeze(1)
        else:
            probability = to_photograph(mask_logits, size)
        decided: Mask = (probability > self.threshold).cpu().numpy()
        return decided

    def bring(self, mask: Mask, image_size: int) -> Mask:
        """A prediction that is stored as a mask (H, W), on the pixels that are scored.

        Where no probabilities are left, the mask goes the target's way; under `touched`, which would make it grow,
        it is resized bilinearly and decided at the threshold. A mask of the square's size stays as it is.
        """
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if mask.shape == size:
            return mask
        if self.target == "touched":
            return _resize(mask, size, "bilinear") > self.threshold
        return _resize(mask, size, "nearest-exact") > 0

    def bring_target(self, mask: Mask, image_size: int) -> Mask:
        """A target (H, W) on the pixels that are scored."""
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if self.square is None:
            return mask
        return _resize(mask, size, "bilinear" if self.target == "touched" else "nearest-exact") > 0


def _resize(mask: Mask, size: tuple[int, int], mode: str) -> npt.NDArray[np.float32]:
    values = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    corners = True if mode == "bilinear" else None  # as in the code that SHNet's authors released
    return np.asarray(F.interpolate(values, size=size, mode=mode, align_corners=corners)[0, 0])


NATIVE = Protocol("native", "original H×W", threshold=0.5, precise_at_equality=True, both_empty=1.0)
SHNET = Protocol(
    "shnet",
    "square S/2, target dilated by bilinear resizing",
    threshold=0.40,
    precise_at_equality=False,
    both_empty=None,
    square="half",
    target="touched",
)
LAVT = Protocol("lavt", "square 480", threshold=0.5, precise_at_equality=True, both_empty=0.0, square=480)
CRIS = Protocol(
    "cris",
    "original H×W, probabilities resized bicubically",
    threshold=0.35,
    precise_at_equality=False,
    both_empty=0.0,
    bicubic=True,
    smoothing=1e-6,
    overall=False,
)
GRES = Protocol(
    "gres",
    "square 480, expressions without a referent apart",
    threshold=0.5,
    precise_at_equality=True,
    both_empty=1.0,
    square=480,
    no_target=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (NATIVE, SHNET, LAVT, CRIS, GRES)}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises RefsegError that lists the names."""
    if name not in PROTOCOLS:
        raise RefsegError(f"there is no protocol {name!r}; one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


class Pixels(NamedTuple):
    """All that is kept of one scored expression, in pixels of the protocol's size."""

    intersection: int
    prediction: int
    target: int
    found: bool
    """Whether the answer claims that there is a referent."""

    @property
    def union(self) -> int:
        """Pixels of prediction or target."""
        return self.prediction + self.target - self.intersection


def count_pixels(prediction: Mask, target: Mask, found: bool | None = None) -> Pixels:
    """Compares two masks (H, W) bool; without `found`, an empty prediction claims that there is no referent.

    Raises RefsegError for other shapes or types.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise RefsegError(
            f"a prediction of shape {prediction.shape} cannot be scored against a target of shape "
            f"{target.shape}; bring both to the H×W of the photograph"
        )
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise RefsegError(f"masks of {prediction.dtype} and {target.dtype} cannot be scored; threshold them to bool")
    size = int(np.count_nonzero(prediction))
    intersection = int(np.count_nonzero(prediction & target))
    return Pixels(intersection, size, int(np.count_nonzero(target)), size > 0 if found is None else found)


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
