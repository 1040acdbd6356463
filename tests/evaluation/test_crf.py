"""A dense CRF pulls a mask to the photograph's edges; it is asked through the one inference path."""

import sys

import numpy as np
import pytest
from PIL import Image

from refseg.cli import main
from refseg.data.sources import load_rows
from refseg.errors import RefsegError
from refseg.evaluation.crf import refine
from refseg.evaluation.evaluate import evaluate
from refseg.evaluation.protocols import LAVT, NATIVE
from refseg.segmenter import load


def square(side=64):
    """A bright square on a dark ground, and a timid mask that falls short of it on every side."""
    pixels = np.full((side, side + 16, 3), 40, np.uint8)
    target = np.zeros(pixels.shape[:2], bool)
    target[16:48, 20:52] = True
    pixels[target] = 200
    inside = np.full(target.shape, 0.1, np.float32)
    inside[19:45, 23:49] = 0.9
    return Image.fromarray(pixels), inside, target


def test_a_mask_grows_to_the_edge_and_stops_there():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed")
    photo, inside, target = square()
    refined = refine(photo, inside)
    assert refined.shape == inside.shape and refined.dtype == np.float32
    assert refined.min() >= 0 and refined.max() <= 1
    before, after = (((x > 0.5) != target).sum() for x in (inside, refined))
    assert before == 32 * 32 - 26 * 26 and after < before / 10
    np.testing.assert_array_equal(refine(photo, inside), refined)


def test_certain_probabilities_are_finite():
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed")
    photo, inside, _ = square()
    assert np.isfinite(refine(photo, (inside > 0.5).astype(np.float32))).all()


def test_a_missing_library_is_named_with_its_cure(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(RefsegError, match=r"pip install 'refseg\[crf\]'"):
        refine(*square()[:2])
    assert main(["evaluate", "shipped", "--data", "scenes:1", "--crf"]) == 2
    assert "pip install 'refseg[crf]'" in capsys.readouterr().err


def upper_half(photo, probability):
    """Stands in for a CRF."""
    assert probability.shape == (photo.height, photo.width)
    half = np.zeros_like(probability)
    half[: photo.height // 2] = 0.75
    return half


@pytest.fixture
def refined(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    return load(tiny_model, device="cpu", refine=upper_half)


def test_what_refines_is_asked_before_the_mask_is_decided(refined):
    photo = Image.new("RGB", (40, 30))
    answer = refined(photo, "the dog")
    assert answer.mask[:15].all() and not answer.mask[15:].any() and answer.score == 0.75
    assert not refined.segment(refined.encode(photo), ["the dog"], threshold=0.8)[0].mask.any()


@pytest.mark.parametrize("protocol", [NATIVE, LAVT])
def test_every_protocol_scores_the_refined_masks(refined, protocol):
    rows = load_rows("scenes:2", per_photo=3)
    report = evaluate(refined, rows, progress=False, protocol=protocol)
    h, w = protocol.size((rows[0].height, rows[0].width), refined.image_size)
    assert {one.pixels.prediction for one in report.answers} == {h // 2 * w}


def test_the_report_names_the_crf(refined, monkeypatch, tmp_path, tiny_model, capsys):
    monkeypatch.setattr("refseg.evaluation.crf.refine", upper_half)
    monkeypatch.setattr("refseg.evaluation.crf.need_crf", lambda: None)
    assert main(["evaluate", str(tiny_model), "--data", "scenes:1", "--crf", "--device", "cpu", "--json"]) == 0
    assert f'"{tiny_model} + dense CRF"' in capsys.readouterr().out
