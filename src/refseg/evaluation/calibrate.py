"""Fits what a model's score is worth, on photographs that it has not seen, and writes it into the checkpoint."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from refseg.calibration import FEATURES, Calibration, Floats, features, predict
from refseg.data.expressions.names import Name, anything, hypernyms, names
from refseg.data.table import Row, by_photograph
from refseg.errors import RefsegError
from refseg.evaluation.protocols import NATIVE, count_pixels
from refseg.evaluation.scores import Scores, calibration_error
from refseg.files import whole
from refseg.segmenter import Segmenter
from refseg.transforms import sigmoid

logger = logging.getLogger(__name__)

PER_PHOTO = 12
"""Expressions of each photograph, and as many about what is not in it."""
WORTHWHILE = 0.75
"""Precision and recall below which `found` is left out of the checkpoint, because it would mislead."""
_FOLDS = 5
_PENALTY = 1.0
"""Ridge on the weights of standardised features. It matters if all answers are alike."""


@dataclass(frozen=True)
class Fit:
    """A calibration, and its quality on photographs that it was not fitted on."""

    calibration: Calibration
    expected: list[float]
    """The cross-validated score of each answer whose referent is in the photograph."""
    ious: list[float]
    """The IoU that each of these answers reached."""
    before: float
    """The calibration error of the mean probability inside the mask, for comparison."""
    precision: float
    """Share of the answers called found whose referent is there. Half of the expressions are about absent referents."""
    recall: float
    """Share of the present referents that are called found."""
    absent: int
    """How many expressions were about what is not in the photograph."""
    photographs: int

    @property
    def error(self) -> float:
        """Cross-validated expected calibration error of the score, 0..1."""
        return calibration_error(self.expected, self.ious)

    def to_text(self) -> str:
        """Three lines for people."""
        kept = "" if self.calibration.found else f" (below {WORTHWHILE:g}: found is left out of the checkpoint)"
        return (
            f"{self.photographs} photographs, {len(self.ious)} expressions whose referent is there, {self.absent} "
            f"whose is not; {_FOLDS}-fold cross-validation over photographs\n"
            f"score: expected calibration error {self.error:.3f}, before {self.before:.3f}; "
            f"correlation with the IoU {_correlation(self.expected, self.ious):.2f}\n"
            f"found: precision {self.precision:.3f}, recall {self.recall:.3f}{kept}"
        )


def fit_calibration(segmenter: Segmenter, rows: Iterable[Row], *, seed: int = 0, progress: bool = True) -> Fit:
    """Fits score and `found` on rows that the model was not trained on.

    Each photograph is asked up to PER_PHOTO of its expressions with a referent, and as many that mean nothing there:
    first its own without a referent, then those of other photographs (see `absent_rows`). The map to the expected IoU
    is a logistic regression on the IoU itself, monotone in every feature (Papke and Wooldridge, "Econometric Methods
    for Fractional Response Variables", 1996). `found` separates the expressions with a referent from those without
    one. Its bound is where precision equals recall on the photographs of the fit. A photograph that cannot be read is
    logged and skipped. Raises RefsegError if there are fewer than 10 photographs, no absent expressions, or only empty
    answers.
    """
    rows = list(rows)
    draw = random.Random(seed)
    values: list[tuple[float, ...]] = []
    ious: list[float] = []
    present: list[bool] = []
    photo_of: list[int] = []
    by_set: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_set[row.split].append(row)
    protocol = replace(NATIVE, threshold=segmenter.threshold)
    photographs = list(by_photograph(rows))
    for number, photo_rows in enumerate(tqdm(photographs, unit="photo", disable=None if progress else True)):
        meant = [row for row in photo_rows if row.mask().any()]
        nothing = [row for row in photo_rows if not row.mask().any()]
        here = draw.sample(meant, min(PER_PHOTO, len(meant)))
        missing = draw.sample(nothing, min(PER_PHOTO, len(nothing)))
        missing += absent_rows(photo_rows, by_set[photo_rows[0].split], PER_PHOTO - len(missing), draw)
        asked = here + missing
        try:
            encoded = segmenter.encode(photo_rows[0].image)
        except RefsegError as fault:
            logger.warning("skipped: %s", fault)
            continue
        expressions = [row.expression for row in asked]
        tokens = segmenter.tokenizer(expressions)
        mask_logits = segmenter.mask_logits(encoded, expressions)
        for place, row in enumerate(asked):
            mask = protocol.decide(mask_logits[place : place + 1], encoded.size, segmenter.image_size)[0]
            is_here = place < len(here)
            words, unknown = int(tokens.mask[place].sum()), len(tokens.unknown[place])
            values.append((*features(mask_logits[place], segmenter.threshold, unknown, words), float(mask.any())))
            ious.append(Scores().iou(count_pixels(mask, row.mask())) if is_here else 0.0)
            present.append(is_here)
            photo_of.append(number)
    return _fit(np.array(values), np.array(ious), np.array(present), np.array(photo_of), seed)


def absent_rows(present_rows: Sequence[Row], others: Sequence[Row], count: int, draw: random.Random) -> list[Row]:
    """Up to `count` of the `others` that describe what is not in the photograph of `present_rows`.

    An expression is taken if its label has a name, the expression says that name, and the name could mean no label of
    the photograph. "the vehicle" is absent only if there is neither car nor bus. All rows should come from one data
    set, because another one may not have annotated everything.
    """
    present = {row.label for row in present_rows if row.label}
    candidates = [row for row in others if row.label not in present and row.image != present_rows[0].image]
    draw.shuffle(candidates)
    chosen: list[Row] = []
    for row in candidates:
        if len(chosen) == count:
            break
        if _is_absent(row, present):
            chosen.append(row)
    return chosen


def _is_absent(row: Row, present: set[str]) -> bool:
    named = [name for alone in (True, False) for name in names(row.label, alone)] if row.label else []
    named = [name for name in (*named, *hypernyms(row.label)) if _says(row.expression, name)]
    vague = any(_says(row.expression, name) for name in anything())
    return bool(named) and not vague and not any(name.could_mean(label) for name in named for label in present)


def _says(expression: str, name: Name) -> bool:
    words = " ".join(re.findall(r"[\w'-]+", expression.lower()))
    text = f" {words} "
    return any(word and f" {word} " in text for word in (name.word, name.plural))


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Writes the calibration into the checkpoint's config.json, changes nothing else in it, and returns its path."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["calibration"] = calibration.to_dict()
        with whole(path) as unfinished:
            unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, ValueError, TypeError) as fault:
        raise RefsegError(f"{path} cannot be changed ({fault}); give a checkpoint in a writable folder") from fault
    return path


def _fit(
    values: Floats, ious: Floats, present: npt.NDArray[np.bool_], photo_of: npt.NDArray[np.int64], seed: int
) -> Fit:
    """`values` are (N, features and whether the mask has a pixel), the other arrays (N,)."""
    photographs = np.unique(photo_of)
    if len(photographs) < 2 * _FOLDS:
        raise RefsegError(f"{len(photographs)} photographs are too few to calibrate; give {2 * _FOLDS} or more")
    if present.all():
        raise RefsegError("no expression is absent from another photograph; give data with several labels")
    fold_of = np.random.default_rng(seed).permutation(len(photographs)) % _FOLDS
    fold = fold_of[np.searchsorted(photographs, photo_of)]
    expected, found = np.zeros(len(values)), np.zeros(len(values), dtype=bool)
    for held_out in range(_FOLDS):
        test = fold == held_out
        calibration = _calibrate(values[~test], ious[~test], present[~test])
        expected[test], found[test] = _verdicts(calibration, values[test])
    calibration = _calibrate(values, ious, present)
    hits = int((found & present).sum())
    precision, recall = hits / max(int(found.sum()), 1), hits / int(present.sum())
    if min(precision, recall) < WORTHWHILE:
        calibration = replace(calibration, found=None)
    return Fit(
        calibration,
        expected[present].tolist(),
        ious[present].tolist(),
        calibration_error(values[present, 0].tolist(), ious[present].tolist()),
        precision,
        recall,
        int((~present).sum()),
        len(photographs),
    )


def _calibrate(values: Floats, ious: Floats, present: npt.NDArray[np.bool_]) -> Calibration:
    filled = values[:, -1] > 0  # an empty mask needs no weights: its score is 0 and it has found nothing
    known = filled & present
    if not known.any():
        raise RefsegError("every answer is empty, which leaves nothing to calibrate; train the model first")
    score = _fit_weights(values[known, :-1], ious[known])
    found = _fit_weights(values[filled, :-1], present[filled].astype(np.float64))
    likely = np.where(filled, predict(found, values[:, :-1]), 0.0)
    # As many are called found as are there, so precision equals recall.
    at = float(np.quantile(likely, 1 - present.mean(), method="higher"))
    return Calibration(_rounded(score), _rounded(found), float(f"{at:.4g}"))


def _verdicts(calibration: Calibration, values: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    filled = values[:, -1] > 0
    score = np.where(filled, predict(calibration.score, values[:, :-1]), 0.0)
    likely = predict(calibration.found or (), values[:, :-1])
    return score, filled & (likely >= calibration.found_at)


def _fit_weights(values: Floats, targets: Floats) -> Floats:
    """As `_regress`, but an unknown word never makes an answer look better."""
    weights = _regress(values, targets)
    unknown = FEATURES.index("unknown")
    if weights[unknown] <= 0:
        return weights
    known = values.copy()
    known[:, unknown] = 0  # few sentences of a data set have such words, so the sign was chance
    return _regress(known, targets)


def _regress(values: Floats, targets: Floats) -> Floats:
    """Weights and constant (F + 1,) of a logistic regression on targets in 0..1, by Newton's method."""
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-6
    standard = np.column_stack([(values - mean) / spread, np.ones(len(values))])
    penalty = np.diag([_PENALTY] * values.shape[1] + [1e-6])
    weights = np.zeros(standard.shape[1])
    for _ in range(25):
        likely = sigmoid(standard @ weights)
        slope = standard.T @ (likely - targets) + penalty @ weights
        curvature = (standard * (likely * (1 - likely))[:, None]).T @ standard + penalty
        weights -= np.linalg.solve(curvature, slope)
    plain = weights[:-1] / spread
    return np.append(plain, weights[-1] - plain @ mean)


def _rounded(weights: Floats) -> tuple[float, ...]:
    return tuple(float(f"{weight:.6g}") for weight in weights)


def _correlation(first: Sequence[float], second: Sequence[float]) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(first, second)[0, 1])
