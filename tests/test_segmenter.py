"""The inference path: one photograph, any number of expressions, always the same answer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import refseg
from refseg.data.transforms import to_photograph
from refseg.segmenter import load

EXPRESSIONS = ["red bag", "the cat behind the man", "🐈", "the red bag on the left of the blue cup", "left"]
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return load(tiny_model, device="cpu")


def test_one_in_one_out_and_list_in_list_out(segmenter):
    one = segmenter(PHOTO, "red bag")
    several = segmenter(PHOTO, EXPRESSIONS)
    assert one.expression == "red bag" and 0 < one.mask.mean() < 1
    assert [answer.expression for answer in several] == EXPRESSIONS
    assert [type(segmenter(PHOTO, names)) for names in (["left"], ("left",), [])] == [list] * 3
    assert segmenter(PHOTO, []) == []


def test_mask_has_the_size_as_displayed(segmenter, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=exif)
    answer = segmenter(tmp_path / "turned.png", "dog")
    assert answer.mask.shape == (90, 50)
    upright = segmenter(Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_270), "dog")
    np.testing.assert_array_equal(answer.mask, upright.mask)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_an_answer_in_a_batch_equals_the_answer_alone(segmenter, batch_size):
    encoded = segmenter.encode(PHOTO)
    together = segmenter.segment(encoded, EXPRESSIONS, batch_size=batch_size)
    assert len({answer.mask.tobytes() for answer in together}) == len(EXPRESSIONS), "answers differ"
    for expression, answer in zip(EXPRESSIONS, together, strict=True):
        alone = segmenter(PHOTO, expression)
        np.testing.assert_array_equal(answer.mask, alone.mask)
        assert answer.score == pytest.approx(alone.score, abs=1e-5)
        assert answer.unknown_words == alone.unknown_words


def test_photograph_is_encoded_once(segmenter, monkeypatch):
    calls = []
    encode = segmenter.model.encode
    monkeypatch.setattr(segmenter.model, "encode", lambda images: calls.append(images.shape) or encode(images))
    segmenter(PHOTO, EXPRESSIONS * 3)
    assert calls == [(1, 3, 64, 64)]


def test_mask_and_score_follow_from_the_probabilities(segmenter):
    encoded = segmenter.encode(PHOTO)
    tokens = segmenter.tokenizer(["left"])
    with torch.no_grad():
        logits = segmenter.model(ids=tokens.ids, mask=tokens.mask, levels=encoded.levels)
    probability = to_photograph(logits, (50, 90))[0].numpy()
    for threshold in (0.3, 0.5, 0.8):
        (answer,) = segmenter.segment(encoded, ["left"], threshold=threshold)
        np.testing.assert_array_equal(answer.mask, probability > threshold)
        assert answer.score == pytest.approx(probability[probability > threshold].mean())


def test_nothing_found_is_an_answer(segmenter):
    (answer,) = segmenter.segment(segmenter.encode(PHOTO), ["left"], threshold=0.9999)
    assert not answer.mask.any() and answer.score == 0.0 and answer.box is None


def test_words_that_were_not_understood_are_told(segmenter):
    known, unknown, long = segmenter(PHOTO, ["the red bag", "the zebra 🦓", "left " * 26])
    assert (known.unknown_words, known.truncated) == ((), False)
    assert unknown.unknown_words == ("zebra", "🦓")
    assert long.truncated


def test_threshold_comes_from_the_call_then_load_then_the_model(tiny_model):
    assert load(tiny_model, device="cpu").threshold == 0.5
    assert load(tiny_model, device="cpu", threshold=0.2).threshold == 0.2


def test_inference_leaves_no_gradient_and_no_dropout(segmenter):
    encoded = segmenter.encode(PHOTO)
    assert not segmenter.model.training
    assert not any(level.requires_grad for level in encoded.levels)
    assert encoded.size == (50, 90)
    assert encoded.photo is segmenter.segment(encoded, ["left"])[0].photo


def test_hub_model_comes_from_the_cache_first(tiny_model, monkeypatch):
    asked = []

    def download(name, **options):
        asked.append((name, options.get("local_files_only", False)))
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("someone/shnet", device="cpu")(PHOTO, "dog").mask.shape == (50, 90)
    assert asked == [("someone/shnet", True)]


def test_hub_model_is_fetched_when_the_cache_lacks_it(tiny_model, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name, **options):
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not cached")
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("someone/shnet", device="cpu").threshold == 0.5


def test_loading_is_silent_and_leaves_the_library_s_settings(tiny_model, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(tiny_model, device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_public_names():
    assert refseg.load is load
    assert all(getattr(refseg, name) is not None for name in refseg.__all__)
    assert dir(refseg) == sorted(refseg.__all__)
    with pytest.raises(AttributeError, match="segmnet"):
        _ = refseg.segmnet


def test_import_is_quick():
    program = "import sys, refseg; refseg.__version__; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mask_is_the_logits_resized_and_decided(segmenter):
    encoded = segmenter.encode(PHOTO)
    logits = segmenter.mask_logits(encoded, ["the red bag", "dog"])
    assert logits.shape == (2, 1, 4 * segmenter.model.config.grid, 4 * segmenter.model.config.grid)
    probabilities = to_photograph(logits, encoded.size)
    for answer, probability in zip(segmenter.segment(encoded, ["the red bag", "dog"]), probabilities, strict=True):
        assert np.array_equal(answer.mask, (probability > segmenter.threshold).numpy())
