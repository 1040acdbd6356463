"""What an answer is worth: its score as the IoU to expect, and whether the referent is in the photograph at all.

Both are logistic functions of a few cheap features of the answer, fitted on photographs that the model has not seen,
and stored as a handful of numbers in the checkpoint's config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refseg.errors import RefsegError
from refseg.transforms import sigmoid

FEATURES = ("inside", "peak", "area", "unknown", "words")
Floats = npt.NDArray[np.float64]


class Verdict(NamedTuple):
    """What a calibrated model says of one answer."""

    score: float
    """The IoU to expect if the referent is in the photograph, 0..1."""
    found: bool | None
    """Whether the referent is in the photograph; None where the checkpoint does not say."""


@dataclass(frozen=True)
class Calibration:
    """At most 13 numbers: weights of FEATURES and a constant, for the score and for `found`."""

    score: tuple[float, ...]
    found: tuple[float, ...] | None = None
    found_at: float = 0.5
    """The probability from which on the referent counts as found."""

    def __post_init__(self) -> None:
        for weights in (self.score, self.found):
            if weights is not None and (
                len(weights) != len(FEATURES) + 1 or not all(map(math.isfinite, (*weights, self.found_at)))
            ):
                raise RefsegError(f"a calibration holds {len(FEATURES) + 1} finite numbers; run refseg calibrate again")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any] | None) -> Calibration | None:
        """Reads what `to_dict` made; None stays None. Raises RefsegError for anything else."""
        if record is None:
            return None
        try:
            if tuple(record["features"]) != FEATURES:
                raise RefsegError(f"it was fitted on other features ({', '.join(record['features'])})")
            found = record["found"]
            return cls(
                tuple(map(float, record["score"])),
                None if found is None else tuple(map(float, found)),
                float(record["found_at"]),
            )
        except (KeyError, TypeError, ValueError) as fault:
            raise RefsegError(
                f"the calibration in config.json is unusable ({fault}); take it out and run refseg calibrate"
            ) from fault

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it stands in config.json under "calibration"."""
        found = None if self.found is None else list(self.found)
        return {"features": list(FEATURES), "score": list(self.score), "found": found, "found_at": self.found_at}

    def judge(self, mask_logits: npt.NDArray[np.float32], threshold: float, unknown: int, words: int) -> Verdict:
        """The verdict on one answer that is not empty; see `features`. An empty mask has score 0 and is not found."""
        values = np.array([features(mask_logits, threshold, unknown, words)])
        found = None if self.found is None else bool(predict(self.found, values)[0] >= self.found_at)
        return Verdict(float(predict(self.score, values)[0]), found)


def features(mask_logits: npt.NDArray[np.float32], threshold: float, unknown: int, words: int) -> tuple[float, ...]:
    """FEATURES of one answer, from its mask logits (1, 4h, 4w) over the network's square.

    Mean probability inside the mask · highest logit, within ±10 · decimal logarithm of the share of the square that is
    possibly the referent (probability above 0.3) · share of the words that the model has never seen · natural logarithm
    of the number of words. All lie between −10 and 10.
    """
    probability = sigmoid(mask_logits)
    mask = probability > threshold
    inside = float(probability[mask].mean()) if mask.any() else 0.0
    possible = max(int((probability > 0.3).sum()), 1) / probability.size
    peak = float(np.clip(mask_logits.max(), -10, 10))
    return inside, peak, math.log10(possible), unknown / max(words, 1), math.log(max(words, 1))


def predict(weights: Sequence[float] | Floats, values: Floats) -> Floats:
    return sigmoid(values @ np.asarray(weights[:-1]) + weights[-1])
