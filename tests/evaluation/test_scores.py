import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refseg.errors import RefsegError
from refseg.evaluation.protocols import CRIS, GRES, LAVT, NATIVE, PROTOCOLS, SHNET, Protocol, find_protocol
from refseg.evaluation.scores import PRECISION_AT, Scores

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
    return scores.sums, scores.overall_iou, scores.mean_iou, scores.precision, scores.empty_share, scores.count


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


# ---------------------------------------------------------------- the protocols: what counts


HALF = (row_of(0), row_of(0, 1))  # an IoU of exactly 0.5
NOTHING = (row_of(), row_of())
MISSED = (row_of(), row_of(*range(4)))
INVENTED = (row_of(0, 1, 2), row_of())


def test_the_protocols_of_the_design():
    assert list(PROTOCOLS) == ["native", "shnet", "lavt", "cris", "gres"]
    table = {p.name: (p.threshold, p.precise_at_equality, p.both_empty, p.overall) for p in PROTOCOLS.values()}
    assert table == {
        "native": (0.5, True, 1.0, True),
        "shnet": (0.40, False, None, True),
        "lavt": (0.5, True, 0.0, True),
        "cris": (0.35, False, 0.0, False),
        "gres": (0.5, True, 1.0, True),
    }
    with pytest.raises(RefsegError, match=r"'unc'.*native, shnet, lavt, cris, gres"):
        find_protocol("unc")


@pytest.mark.parametrize(
    ("protocol", "overall", "mean", "precision", "count"),
    [
        (NATIVE, 1 / 9, (0.5 + 1 + 0 + 0) / 4, 2 / 4, 4),
        (SHNET, 1 / 9, 0.5 / 3, 0, 3),  # nothing against nothing is passed over; 0.5 is not more than 0.5
        (LAVT, 1 / 9, 0.5 / 4, 1 / 4, 4),
        (CRIS, math.nan, 0.5 / 4, 0, 4),
        (GRES, 1 / 9, (0.5 + 1) / 4, 1 / 2, 4),  # precision over the two that have a referent
    ],
)
def test_doubtful_cases(protocol, overall, mean, precision, count):
    scores = scored([HALF, NOTHING, MISSED, INVENTED], protocol)
    assert scores.overall_iou == pytest.approx(overall, nan_ok=True)
    assert scores.mean_iou == pytest.approx(mean, abs=1e-6)
    assert scores.precision[0.5] == precision
    assert scores.count == count
    assert scores.empty_share == 0.5


def test_cris_adds_a_millionth_to_each_union():
    scores = scored([(row_of(0), row_of(0))], CRIS)
    assert scores.mean_iou == 1 / (1 + 1e-6)
    assert scores.precision[0.9] == 1


def test_gres_counts_expressions_without_a_referent_apart():
    scores = scored([HALF, NOTHING, NOTHING, MISSED, INVENTED], GRES)
    assert scores.no_target_accuracy == 2 / 3
    assert scores.target_accuracy == 1 / 2


def test_gres_takes_the_answers_word_that_there_is_nothing():
    denied = Scores(GRES)
    denied.add(*HALF, found=False)  # a hit that the model denies: no intersection, the union stays
    assert denied.sums == (0, 2)
    assert denied.mean_iou == 0
    right = Scores(GRES)
    right.add(*INVENTED, found=False)
    assert (right.sums, right.mean_iou) == ((0, 0), 1)
    native = Scores()
    native.add(*HALF, found=False)
    assert native.overall_iou == 0.5


masks = arrays(bool, (3, 4)) | st.just(np.zeros((3, 4), dtype=bool))


@settings(max_examples=200)
@given(st.sampled_from(list(PROTOCOLS.values())), st.lists(st.tuples(masks, masks, st.booleans()), min_size=1))
def test_every_protocol_agrees_with_its_rules_written_out(protocol, answers):
    scores = Scores(protocol)
    total_i = total_u = 0
    ious, reached, targets = [], [], 0
    for prediction, target, found in answers:
        scores.add(prediction, target, found)
        i, u = int((prediction & target).sum()), int((prediction | target).sum())
        if protocol.name == "native":
            iou = i / u if u else 1.0
        elif protocol.name == "shnet":
            if u == 0:
                continue
            iou = i / u
        elif protocol.name == "lavt":
            iou = i / u if u else 0.0
        elif protocol.name == "cris":
            iou = i / (u + 1e-6)
        elif not target.any():
            ious.append(float(not found))
            total_u += u if found else 0
            continue
        else:
            i = i if found else 0
            iou = i / u
        total_i, total_u, targets = total_i + i, total_u + u, targets + 1
        ious.append(iou)
        reached.append(iou)
    strict = protocol.name in ("shnet", "cris")
    assert scores.count == len(ious)
    assert scores.mean_iou == (pytest.approx(np.mean(ious)) if ious else pytest.approx(math.nan, nan_ok=True))
    if protocol.name != "cris" and total_u:
        assert scores.overall_iou == total_i / total_u
    for x in PRECISION_AT:
        hits = sum(iou > x if strict else iou >= x for iou in reached)
        assert scores.precision[x] == pytest.approx(hits / targets if targets else math.nan, nan_ok=True)


# ---------------------------------------------------------------- the protocols: where it is scored


def blob(height, width, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    top, left = rng.integers(height // 2), rng.integers(width // 2)
    mask[top : top + rng.integers(1, height // 2), left : left + rng.integers(1, width // 2)] = True
    return mask


def bilinear(values, size, corners=False):
    """Half-pixel centres (or corner on corner), no smoothing, edges repeated; (h, w) → size."""

    def along(values, length):
        place = (np.arange(length) + 0.5) * len(values) / length - 0.5
        if corners:
            place = np.arange(length) * (len(values) - 1) / (length - 1)
        place = np.clip(place, 0, len(values) - 1)
        low = place.astype(int)
        high = np.minimum(low + 1, len(values) - 1)
        share = (place - low)[:, None]
        return values[low] * (1 - share) + values[high] * share

    return along(along(values, size[0]).T, size[1]).T


def nearest(mask, size):
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(int)
    return mask[rows][:, columns]


def cubic(values, rows, columns, repeat):
    """Keys' kernel with a = −0.75 at the given places; outside is 0, or the edge repeated."""

    def weight(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def along(values, places):
        out = np.zeros((len(places), values.shape[1]))
        for k, place in enumerate(places):
            low = math.floor(place)
            for tap in range(low - 1, low + 3):
                if repeat or 0 <= tap < len(values):
                    out[k] += weight(place - tap) * values[min(max(tap, 0), len(values) - 1)]
        return out

    return along(along(values, rows).T, columns).T


def cris(probability, size, side, letterbox=False):
    """Corners on corners to the network's square, then by OpenCV 4's places, in steps of 1/32, to the photograph."""
    places = [[k * (length - 1) / (side - 1) for k in range(side)] for length in probability.shape]
    square = cubic(probability, *places, repeat=True)
    scale = [min(side / whole for whole in size) if letterbox else side / length for length in size]
    border = [(side - length * step) / 2 for length, step in zip(size, scale, strict=True)]
    exact = [[k * step + b for k in range(n)] for n, step, b in zip(size, scale, border, strict=True)]
    return cubic(square, *([math.floor(place * 32 + 0.5) / 32 for place in axis] for axis in exact), repeat=False)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


SIZE, INPUT = (30, 52), 40


@pytest.mark.parametrize(
    ("protocol", "size"),
    [(NATIVE, SIZE), (SHNET, (20, 20)), (LAVT, (480, 480)), (CRIS, SIZE), (GRES, (480, 480))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_pixels_that_are_scored(protocol, size):
    mask = blob(*SIZE)
    logits = (torch.randn(2, 1, 10, 10, generator=torch.Generator().manual_seed(1)) * 3).numpy()
    assert protocol.size(SIZE, INPUT) == size
    decided = protocol.decide(logits, SIZE, INPUT)
    assert decided.shape == (2, *size)
    assert protocol.bring_target(mask, INPUT).shape == protocol.bring(mask, INPUT).shape == size
    for number in range(2):
        small = logits[number, 0].astype(float)
        probability = cris(sigmoid(small), size, INPUT) if protocol is CRIS else sigmoid(bilinear(small, size))
        clear = abs(probability - protocol.threshold) > 1e-4
        assert (decided[number] == (probability > protocol.threshold))[clear].all()
        assert clear.mean() > 0.99


@pytest.mark.parametrize("size", [(30, 52), (52, 30), (40, 40), (100, 37)])
@pytest.mark.parametrize("letterbox", [True, False])
def test_cris_undoes_what_the_network_saw(size, letterbox):
    logits = (torch.randn(1, 1, 10, 10, generator=torch.Generator().manual_seed(2)) * 3).numpy()
    probability = cris(sigmoid(logits[0, 0].astype(float)), size, INPUT, letterbox)
    clear = abs(probability - 0.35) > 0.02  # a place between two steps of 1/32 may be rounded either way
    decided = CRIS.decide(logits, size, INPUT, letterbox=letterbox)[0]
    assert (decided == (probability > 0.35))[clear].all()
    assert clear.mean() > 0.8


def on_grid(*places, side=4):
    """Logits over the network's own square that are certain: 1 at the given places, 0 elsewhere."""
    logits = np.full((1, 1, side, side), -50, dtype=np.float32)
    for row, column in places:
        logits[0, 0, row, column] = 50
    return logits


def test_cris_by_hand():
    """Row y of a photograph of 4×8 lies at 1 + y/2 of a letterboxed square of 4, column x at x/2."""
    # The kernel is 1 at a distance of 0, 19/32 at 1/2 and 0 at 1; and 19/32 · 19/32 = 0.3525 is above 0.35.
    expected = np.zeros((4, 8), dtype=bool)
    expected[1:4, 3:6] = True
    assert (CRIS.decide(on_grid((2, 2)), (4, 8), 4, letterbox=True)[0] == expected).all()
    plain = np.zeros((4, 8), dtype=bool)
    plain[2, 3:6] = True  # resized without a border, row y lies at y
    assert (CRIS.decide(on_grid((2, 2)), (4, 8), 4)[0] == plain).all()


def test_cris_reads_nothing_beyond_the_square():
    """Columns 3.5 of 4 weigh the last column by 19/32 and its missing neighbour by nothing; repeated it were 1/2."""
    edge = CRIS.decide(on_grid(*((row, 3) for row in range(4))), (4, 8), 4)[0]
    assert edge[0].tolist() == [False] * 5 + [True] * 3
    both = CRIS.decide(np.log(np.full((1, 1, 4, 4), 0.42 / 0.58, dtype=np.float32)), (4, 8), 4)[0]
    assert not both[0, 7] and both[0, :7].all()  # 0.42 · (−3/32 + 19/32) = 0.21, where an edge repeated has 0.42


@pytest.mark.parametrize(("tenths", "reached"), [(5, 0), (6, 0), (7, 1), (8, 0), (9, 1)])
def test_cris_compares_with_float32(tenths, reached):
    """0.7 and 0.9 are a little less in float32, 0.6 and 0.8 a little more; the millionth takes less than that."""
    exact = (row_of(*range(100 * tenths), width=1000), row_of(*range(1000), width=1000))
    assert scored([exact], CRIS).precision[tenths / 10] == reached
    few = (row_of(*range(tenths)), row_of(*range(10)))  # of ten pixels, the millionth takes more
    assert scored([few], CRIS).precision[tenths / 10] == 0


def test_targets_are_resized_as_pillow_does():
    """From 640 to 480, pixel 4 lies exactly between 5 and 6 of the old: Pillow has 5, PyTorch's nearest-exact 6."""
    for protocol in (LAVT, GRES):
        for old, new in ((5, [4]), (6, [])):
            mask = np.zeros((480, 640), dtype=bool)
            mask[:, old] = True
            assert np.flatnonzero(protocol.bring_target(mask, 320)[0]).tolist() == new
        high = np.zeros((640, 480), dtype=bool)
        high[5] = True
        assert np.flatnonzero(protocol.bring_target(high, 320)[:, 0]).tolist() == [4]
        assert (protocol.bring(high, 320) == protocol.bring_target(high, 320)).all()


def test_gres_knows_a_referent_by_its_original_mask():
    """A referent that the square has no pixel of is still a referent: to miss it is wrong, and no N-acc."""
    scores = Scores(GRES)
    scores.add(row_of(), row_of(), referent=True)
    assert (scores.mean_iou, scores.sums, scores.target_accuracy) == (0, (0, 0), 0)
    assert math.isnan(scores.no_target_accuracy)
    assert scores.precision[0.5] == 0
    scores.add(row_of(0, 1), row_of(), referent=True)
    assert (scores.mean_iou, scores.sums, scores.target_accuracy) == (0, (0, 2), 0.5)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_targets_and_stored_masks(seed):
    mask = blob(*SIZE, seed)
    assert (NATIVE.bring_target(mask, INPUT) == mask).all()
    assert (CRIS.bring(mask, INPUT) == mask).all()
    for protocol in (LAVT, GRES):
        assert (protocol.bring_target(mask, INPUT) == nearest(mask, (480, 480))).all()
        assert (protocol.bring(mask, INPUT) == protocol.bring_target(mask, INPUT)).all()
    soft = bilinear(mask.astype(float), (20, 20), corners=True)
    for bound, brought in ((0, SHNET.bring_target(mask, INPUT)), (0.4, SHNET.bring(mask, INPUT))):
        clear = abs(soft - bound) > 1e-5
        assert (brought == (soft > bound))[clear].all()


def test_a_stored_mask_of_the_squares_size_stays_as_it_is():
    square = blob(20, 20)
    assert (SHNET.bring(square, INPUT) == square).all()
    assert (LAVT.bring(blob(480, 480), INPUT) == blob(480, 480)).all()


def test_shnet_dilates_its_targets():
    speck = np.zeros((11, 11), dtype=bool)
    speck[5, 5] = True
    target, prediction = SHNET.bring_target(speck, 42), SHNET.bring(speck, 42)  # on 21×21, twice as fine
    assert target.sum() == 9  # all that its weight reaches
    assert prediction.sum() == 5  # all where it weighs more than 0.4
