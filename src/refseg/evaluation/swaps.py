"""An exact test: if left and right are exchanged in a sentence, the mask must move to the other thing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm

from refseg.data.expressions.generate import mirror_expression
from refseg.data.table import Row, by_photograph
from refseg.errors import RefsegError
from refseg.evaluation.evaluate import Answering
from refseg.masks import iou


@dataclass(frozen=True)
class Consistency:
    """How a model answered pairs of sentences that differ only in left and right."""

    pairs: int
    photographs: int
    consistent: int
    """The number of pairs in which each answer has a higher IoU with its own referent than with the other's."""
    exact: int
    """The number of pairs in which each answer has an IoU of 0.5 or more with its own referent."""
    unmoved: int
    """The number of pairs whose two answers have an IoU of 0.5 or more with each other, or are both empty."""

    @property
    def rate(self) -> float:
        """The share of pairs that are consistent, 0..1. A model that ignores the side gets 0."""
        return self.consistent / self.pairs

    def to_text(self) -> str:
        """One line for people."""
        return (
            f"left and right exchanged: {self.rate:.1%} of {self.pairs} pairs consistent"
            f" · {self.photographs} photographs · both answers right (IoU ≥ 0.5) {self.exact / self.pairs:.1%}"
            f" · mask did not move {self.unmoved / self.pairs:.1%}"
        )


def swapped_pairs(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows about one photograph whose sentences are each other's mirror and mean different segments.

    Both sentences come from the generator, so each is true of its referent and of nothing else. Rows should contain
    everything that can be said about a photograph: `load_rows(spec, per_photo=ALL)`.
    """
    pairs = []
    for photo_rows in by_photograph(rows):
        by_expression = {row.expression: row for row in photo_rows}
        for expression, row in by_expression.items():
            other = by_expression.get(mirror_expression(expression))
            if other is not None and expression < other.expression and row.counts != other.counts:
                pairs.append((row, other))
    return pairs


ALL = 100_000
"""More expressions than a photograph allows."""


def consistency(segmenter: Answering, rows: Iterable[Row], progress: bool = True) -> Consistency:
    """Asks both sentences of each of the `swapped_pairs`. Raises RefsegError if there are none."""
    pairs = swapped_pairs(rows)
    if not pairs:
        raise RefsegError("no two sentences of the data differ in left and right alone; try --data scenes:100")
    by_image: dict[str, list[tuple[Row, Row]]] = {}
    for pair in pairs:
        by_image.setdefault(str(pair[0].image), []).append(pair)
    consistent = exact = unmoved = 0
    for here in tqdm(by_image.values(), desc="left and right", unit="photo", disable=None if progress else True):
        encoded = segmenter.encode(here[0][0].image)
        answers = segmenter.segment(encoded, [row.expression for pair in here for row in pair])
        for rows_of_pair, first, second in zip(here, answers[::2], answers[1::2], strict=True):
            target, swapped = (row.mask() for row in rows_of_pair)
            right = iou(first.mask, target), iou(second.mask, swapped)
            wrong = iou(first.mask, swapped), iou(second.mask, target)
            consistent += right[0] > wrong[0] and right[1] > wrong[1]
            exact += min(right) >= 0.5
            unmoved += iou(first.mask, second.mask) >= 0.5 or not (first.mask.any() or second.mask.any())
    return Consistency(len(pairs), len(by_image), consistent, exact, unmoved)
