import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refseg
from refseg.calibration import FEATURES, Calibration, features
from refseg.data.sources import load_rows
from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.evaluation.calibrate import _calibrate, _fit, _regress, absent_rows, fit_calibration, write_calibration
from refseg.evaluation.scores import calibration_error, reliability
from refseg.masks import encode_mask

SCORE = (4.0, 0.1, 0.5, -1.0, -0.2, -2.0)
CALIBRATION = Calibration(SCORE, (1.0, 1.0, 0.0, -1.0, 0.0, -3.0), 0.4)


def square(value, inside, side=8):
    """Mask logits (1, 10, 10): `inside` on a square of that side, `value` elsewhere."""
    logits = np.full((1, 10, 10), value, np.float32)
    logits[:, :side, :side] = inside
    return logits


def test_features_by_hand():
    inside, peak, area, unknown, words = features(square(-4, 2, 5), 0.5, unknown=1, words=4)
    assert inside == pytest.approx(1 / (1 + math.exp(-2)))
    assert peak == 2
    assert area == pytest.approx(math.log10(0.25))
    assert unknown == 0.25
    assert words == pytest.approx(math.log(4))


def test_features_of_extremes_are_finite():
    for logits in (square(-1000, -1000), square(1000, 1000)):
        for words in (0, 1, 25):
            values = features(logits, 0.5, 0, words)
            assert all(-10 <= value <= 10 for value in values)
    assert features(square(-9, -9), 0.5, 0, 1)[0] == 0


def test_expected_calibration_error_by_hand():
    scores, ious = [0.05, 0.05, 0.95, 0.95], [0.0, 0.1, 0.5, 0.7]
    assert reliability(scores, ious) == [
        (pytest.approx(0.05), pytest.approx(0.05), 0.5),
        (pytest.approx(0.95), pytest.approx(0.6), 0.5),
    ]
    assert calibration_error(scores, ious) == pytest.approx(0.175)
    assert calibration_error([1.0, 0.0], [1.0, 0.0]) == 0


def test_the_verdict_is_monotone_in_what_speaks_for_the_answer():
    sure, unsure = square(-4, 3), square(-4, 0.5)
    first, second = (CALIBRATION.judge(logits, 0.5, 0, 2) for logits in (sure, unsure))
    assert first.score > second.score
    assert (first.found, second.found) == (True, False)
    assert CALIBRATION.judge(sure, 0.5, 2, 2).score < first.score
    assert replace(CALIBRATION, found=None).judge(sure, 0.5, 0, 2) == (first.score, None)


def test_regression_recovers_its_weights():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20_000, 2)) * [1, 5] + [0, 3]
    likely = 1 / (1 + np.exp(-(values @ [1.5, -0.3] + 0.7)))
    assert _regress(values, likely) == pytest.approx([1.5, -0.3, 0.7], abs=0.01)
    drawn = (rng.random(len(values)) < likely).astype(float)
    assert _regress(values, drawn) == pytest.approx([1.5, -0.3, 0.7], abs=0.1)


def answers(count=3000, photographs=60, telling=2.0, seed=0):
    """Values, IoUs, presence and photographs of made-up answers; `telling` parts present from absent."""
    rng = np.random.default_rng(seed)
    present = rng.random(count) < 0.5
    values = np.column_stack([rng.normal(size=(count, len(FEATURES))), rng.random(count) < 0.9])
    values[:, 1] += telling * present
    iou = 1 / (1 + np.exp(-(2 * values[:, 0] - 1)))
    iou = np.where(present & (values[:, -1] > 0), np.clip(iou + rng.normal(0, 0.05, count), 0, 1), 0.0)
    return values, iou, present, rng.integers(0, photographs, count)


def test_a_telling_feature_gives_a_calibrated_score_and_a_decision():
    fit = _fit(*answers(telling=4.0), 0)
    assert fit.error < 0.03 < fit.before
    assert fit.precision > 0.85 and fit.recall > 0.85
    assert fit.precision == pytest.approx(fit.recall, abs=0.05)
    assert fit.calibration.found is not None
    assert "left out" not in fit.to_text()


def test_a_decision_that_misleads_is_left_out():
    fit = _fit(*answers(telling=0.0), 0)
    assert fit.precision == pytest.approx(0.5, abs=0.07)
    assert fit.calibration.found is None
    assert "left out" in fit.to_text()


def test_what_is_reported_was_not_fitted():
    """With as many parameters as there are photographs to learn by heart, only a leak predicts pure chance."""
    values, ious, present, _ = answers(count=40, telling=0.0)
    ious = np.random.default_rng(1).random(40) * present
    photo_of = np.arange(40)
    fit = _fit(values, ious, present, photo_of, 0)
    inner = _calibrate(values, ious, present)
    known = present & (values[:, -1] > 0)
    assert np.corrcoef(fit.expected, fit.ious)[0, 1] < 0.6
    assert fit.calibration.score == inner.score
    assert known.sum() < 40


def test_an_empty_mask_has_score_zero():
    values, ious, present, photo_of = answers()
    fit = _fit(values, ious, present, photo_of, 0)
    empty = values[present, -1] == 0
    assert empty.any() and (np.array(fit.expected)[empty] == 0).all()
    values[:, -1] = 0
    with pytest.raises(RefsegError, match="every answer is empty"):
        _fit(values, ious, present, photo_of, 0)


def test_an_unknown_word_never_speaks_for_an_answer():
    values, ious, present, photo_of = answers(telling=4.0)
    unknown = FEATURES.index("unknown")
    for sign in (1, -1):
        values[:, unknown] = sign * (2.0 * ious + present)
        calibration = _fit(values, ious, present, photo_of, 0).calibration
        weights = np.array([calibration.score[unknown], calibration.found[unknown]])
        assert (weights == 0).all() if sign > 0 else (weights < 0).all()


def test_too_little_to_calibrate():
    values, ious, present, photo_of = answers(photographs=9)
    with pytest.raises(RefsegError, match="9 photographs are too few"):
        _fit(values, ious, present, photo_of, 0)
    with pytest.raises(RefsegError, match="no expression is absent"):
        _fit(values, ious, np.ones_like(present), np.arange(len(values)) % 20, 0)


# ---------------------------------------------------------------- what is not in a photograph


def row(image, label, expression):
    return Row(Path(image), image, 4, 4, expression, "", label=label)


def test_absent_expressions_name_what_no_label_of_the_photograph_could_mean():
    own = [row("a", "bus", "the bus"), row("a", "skirt", "the skirt")]
    others = [
        row("b", "dog", "the dog on the left"),
        row("b", "car", "the car"),  # people confuse car and bus
        row("b", "bicycle", "the vehicle"),  # a bus is one
        row("b", "bicycle", "the bicycle"),
        row("b", "dog", "the thing on the left"),  # could be anything
        row("b", "dog", "second from the left"),  # names nothing
        row("b", "bus", "the bus in front"),
        row("b", "", "both of them"),
        row("b", "shorts", "the shorts"),  # people confuse skirt and shorts
        row("b", "dog", "hotdog"),  # another word
    ]
    chosen = absent_rows(own, others, 99, random.Random(0))
    assert sorted(r.expression for r in chosen) == ["the bicycle", "the dog on the left"]
    assert len(absent_rows(own, others, 1, random.Random(0))) == 1


# ---------------------------------------------------------------- in a checkpoint


def test_config_and_back(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = json.loads((folder / "config.json").read_text())
    write_calibration(folder, CALIBRATION)
    after = json.loads((folder / "config.json").read_text())
    assert Calibration.from_dict(after.pop("calibration")) == CALIBRATION
    assert after == {name: value for name, value in before.items() if name != "calibration"}
    # A checkpoint with it still loads, and keeps it when it is saved again.
    segmenter = refseg.load(folder, device="cpu")
    segmenter.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert Calibration.from_dict(again["calibration"]) == CALIBRATION
    numbers = CALIBRATION.to_dict()
    assert len(numbers["score"]) + len(numbers["found"]) + 1 <= 20
    assert Calibration.from_dict(None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"score": [1, 2]},
        {"score": None},
        {"score": [math.nan] * 6},
        {"features": ["x"]},
        {"found_at": "high"},
        {"found": [1]},
    ],
    ids=str,
)
def test_a_damaged_calibration_is_named(change):
    with pytest.raises(RefsegError, match="calibrat"):
        Calibration.from_dict(CALIBRATION.to_dict() | change)


def test_a_config_that_cannot_be_changed(tmp_path):
    with pytest.raises(RefsegError, match="cannot be changed"):
        write_calibration(tmp_path, CALIBRATION)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RefsegError, match="cannot be changed"):
        write_calibration(tmp_path, CALIBRATION)


def test_fit_on_a_tiny_model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    rows = load_rows("scenes:12:5", per_photo=6)
    lost = [replace(row, image=row.image.with_name("lost.png")) for row in rows[:2]]
    segmenter = refseg.load(tiny_model, device="cpu")
    fit = fit_calibration(segmenter, [*rows, *lost], progress=False)
    assert fit.photographs == 12
    assert len(fit.ious) == len(rows) and fit.absent > 12
    assert all(0 <= value <= 1 for value in (*fit.expected, *fit.ious, fit.error, fit.before))
    assert fit_calibration(segmenter, [*rows, *lost], progress=False) == fit


def test_typed_sentences_that_mean_nothing_are_absent(tiny_model, tmp_path, monkeypatch):
    """With twelve of them for each photograph, no other photograph's expressions are asked."""
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    rows = load_rows("scenes:10:5", per_photo=3)
    photos = {row.image: row for row in rows}.values()
    typed = [
        replace(row, expression=f"elephant {n}", counts=encode_mask(np.zeros((row.height, row.width), dtype=bool)),
                label="", kind="nothing", segment_ids=())
        for row in photos
        for n in range(15)
    ]  # fmt: skip
    asked = []

    def none_of_others(present_rows, others, count, draw):
        asked.append(count)
        return []

    monkeypatch.setattr("refseg.evaluation.calibrate.absent_rows", none_of_others)
    fit = fit_calibration(refseg.load(tiny_model, device="cpu"), [*rows, *typed], progress=False)
    assert (len(fit.ious), fit.absent, fit.photographs) == (len(rows), 120, 10)
    assert asked == [0] * 10
