import math

import numpy as np
import pytest
from PIL import Image

import refseg
from refseg.data.sources import load_rows
from refseg.evaluation.card import _choose, contact_sheet, plot_card, write_card
from refseg.evaluation.evaluate import evaluate
from refseg.evaluation.plots import plot_reliability
from refseg.evaluation.protocols import CRIS, NATIVE, SHNET, Pixels
from refseg.evaluation.report import Report, Scored, read_report


def report(ious, protocol=NATIVE, score=0.5):
    answers = [
        Scored(n, f"{n}.png", Pixels(int(100 * iou), 100, 100 - 0, True), score, 0.1, "val", "colour", False)
        for n, iou in enumerate(ious)
    ]
    return Report("m", "d", protocol, 320, 0.5, "1.0", answers=answers)


def test_best_middle_and_worst_are_of_different_photographs():
    ious = [n / 20 for n in range(20)]
    (_, best), (_, middle), (_, worst) = _choose(report(ious), 3)
    assert [answer.row for answer in best] == [19, 18, 17]
    assert [answer.row for answer in worst] == [0, 1, 2]
    assert {answer.row for answer in middle} == {9, 10, 8} or {answer.row for answer in middle} == {9, 10, 11}
    few = report([0.9, 0.5])
    assert sum(len(chosen) for _, chosen in _choose(few, 3)) == 2


def test_among_the_worst_the_most_confident_comes_first():
    answers = report([0, 0, 0, 0.5, 0.9, 0.9]).answers
    answers = [answer._replace(score=score) for answer, score in zip(answers, (0.2, 0.9, 0.4, 0, 0, 0), strict=True)]
    own = report([])
    own.answers = answers
    worst = _choose(own, 2)[2][1]
    assert [answer.row for answer in worst] == [1, 2]


def test_expressions_that_are_passed_over_are_not_shown():
    own = report([0.5, 0.9], SHNET)
    own.answers.append(own.answers[0]._replace(row=2, photograph="2.png", pixels=Pixels(0, 0, 0, False)))
    assert {a.row for _, chosen in _choose(own, 3) for a in chosen} == {0, 1}


@pytest.mark.parametrize(
    "own", [report([0.2, 0.8]), report([0.2, 0.8], CRIS, None), report([0.0])], ids=["", "cris", "one"]
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure(own, suffix, tmp_path):
    plot_card(own, tmp_path / f"card.{suffix}")
    assert (tmp_path / f"card.{suffix}").stat().st_size > 5000


def test_the_reliability_plot(tmp_path):
    plot_reliability([0.1, 0.9, 1.0], [0.2, 0.7, 1.0], tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert min(picture.size) > 500


def test_the_whole_card(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    rows = load_rows("scenes:4:2", per_photo=4)
    segmenter = refseg.load(tiny_model, device="cpu")
    own = evaluate(segmenter, rows, progress=False, model="tiny", data="scenes")
    paths = write_card(own, segmenter, rows, tmp_path / "new" / "card")
    assert [path.name for path in paths] == ["report.json", "card.png", "contact.jpg"]
    assert read_report(paths[0]) == own
    sheet = np.asarray(contact_sheet(own, segmenter, rows, each=2))
    assert sheet.std() > 10 and sheet.shape[1] == 2 * 2 * 300 + 3 * 18
    assert not math.isnan(own.overall.mean_iou)
