import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refseg.errors import RefsegError
from refseg.metrics import NATIVE, PRECISION_AT, Protocol, Scores

pairs_of_masks = st.lists(st.tuples(arrays(bool, (4, 5)), arrays(bool, (4, 5))), min_size=1, max_size=12)


def row_of(*filled, width=10):
    mask = np.zeros((1, width), dtype=bool)
    mask[0, list(filled)] = True
    return mask


def scored(pairs, protocol=NATIVE):
    scores = Scores(protocol)
    for prediction, target in pairs:
        scores.add(prediction, target)
    return scores


def numbers(scores):
    return scores.overall_iou, scores.mean_iou, scores.precision, scores.empty_share, scores.count


def test_hand_computed():
    scores = scored(
        [
            (row_of(0, 1, 2), row_of(1, 2, 3)),  # 2 of 4
            (row_of(), row_of(0)),  # 0 of 1
            (row_of(*range(8)), row_of(*range(10))),  # 8 of 10
        ]
    )
    assert scores.overall_iou == 10 / 15
    assert scores.mean_iou == pytest.approx((0.5 + 0 + 0.8) / 3)
    assert scores.precision == {0.5: 2 / 3, 0.6: 1 / 3, 0.7: 1 / 3, 0.8: 1 / 3, 0.9: 0}
    assert scores.empty_share == 1 / 3
    assert scores.count == 3


@pytest.mark.parametrize(
    ("prediction", "target", "iou", "empty"),
    [
        (row_of(), row_of(), 1.0, 1.0),
        (row_of(), row_of(3), 0.0, 1.0),
        (row_of(3), row_of(), 0.0, 0.0),
        (row_of(3), row_of(3), 1.0, 0.0),
    ],
)
def test_empty_masks(prediction, target, iou, empty):
    scores = scored([(prediction, target)])
    assert scores.overall_iou == scores.mean_iou == iou
    assert set(scores.precision.values()) == {iou}
    assert scores.empty_share == empty


def test_both_empty_leaves_the_overall_sums_alone():
    scores = scored([(row_of(), row_of()), (row_of(0), row_of(0, 1))])
    assert scores.overall_iou == 0.5
    assert scores.mean_iou == 0.75


@pytest.mark.parametrize("x", PRECISION_AT)
def test_an_iou_of_exactly_x_reaches_x(x):
    tenths = round(10 * x)
    exact = (row_of(*range(tenths)), row_of(*range(10)))
    assert scored([exact]).precision[x] == 1
    short = (row_of(*range(tenths * 1000 - 1), width=10_000), row_of(*range(10_000), width=10_000))
    assert scored([short]).precision[x] == 0


def test_another_protocol_is_a_value():
    strict = Protocol("strict", "anywhere", threshold=0.4, precise_at_equality=False, both_empty=0.0)
    scores = scored([(row_of(0), row_of(0, 1)), (row_of(), row_of())], strict)
    assert scores.precision[0.5] == 0
    assert scores.mean_iou == 0.25
    with pytest.raises(RefsegError, match="strict and native"):
        scores.merge(Scores())


def test_nothing_added_has_no_score():
    scores = Scores()
    assert scores.count == 0
    values = (scores.overall_iou, scores.mean_iou, scores.empty_share, *scores.precision.values())
    assert all(math.isnan(value) for value in values)


@given(pairs_of_masks)
def test_agrees_with_counting_pixels_one_by_one(pairs):
    ious, intersections, unions = [], 0, 0
    for prediction, target in pairs:
        both = [p and t for p, t in zip(prediction.flat, target.flat, strict=True)]
        either = [p or t for p, t in zip(prediction.flat, target.flat, strict=True)]
        intersections, unions = intersections + sum(both), unions + sum(either)
        ious.append(sum(both) / sum(either) if any(either) else 1.0)
    scores = scored(pairs)
    assert scores.overall_iou == (intersections / unions if unions else 1.0)
    assert scores.mean_iou == pytest.approx(sum(ious) / len(ious))
    for x in PRECISION_AT:
        assert scores.precision[x] == sum(iou >= x for iou in ious) / len(ious)
    assert scores.empty_share == sum(not prediction.any() for prediction, _ in pairs) / len(pairs)


@settings(max_examples=50)
@given(pairs_of_masks, st.integers(0, 12), st.randoms(use_true_random=False))
def test_merging_in_any_order_changes_no_bit(pairs, cut, shuffler: random.Random):
    together = scored(pairs)
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    first, second = scored(shuffled[:cut]), scored(shuffled[cut:])
    second.merge(first)
    assert numbers(second) == numbers(together)


def test_masks_that_cannot_be_compared_are_refused():
    scores = Scores()
    with pytest.raises(RefsegError, match=r"\(1, 10\).*\(1, 9\).*H×W"):
        scores.add(row_of(0), row_of(0, width=9))
    with pytest.raises(RefsegError, match="H×W"):
        scores.add(row_of(0)[None], row_of(0)[None])
    with pytest.raises(RefsegError, match="threshold"):
        scores.add(row_of(0).astype(np.float32), row_of(0))
    assert scores.count == 0
