"""The inference path: one photograph, any number of expressions, always the same answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import refseg
from refseg.calibration import Calibration
from refseg.checkpoints import find_checkpoint
from refseg.engines.onnx import OnnxEngine
from refseg.engines.torch import TorchEngine
from refseg.errors import RefsegError
from refseg.evaluation.calibrate import write_calibration
from refseg.models.shnet.fusion import ConcatFusion
from refseg.segmenter import EncodedPhoto, load
from refseg.transforms import to_photograph, to_square

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
    encode = segmenter.engine.encode
    monkeypatch.setattr(segmenter.engine, "encode", lambda image: calls.append(image.shape) or encode(image))
    segmenter(PHOTO, EXPRESSIONS * 3)
    assert calls == [(1, 3, 64, 64)]


def test_mask_and_score_follow_from_the_probabilities(segmenter):
    encoded = segmenter.encode(PHOTO)
    tokens = segmenter.tokenizer(["left"])
    logits = segmenter.engine.answer(tokens, encoded.features).mask_logits
    probability = to_photograph(logits, (50, 90))[0]
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


def test_the_shipped_model_has_a_name():
    assert find_checkpoint("shipped") == find_checkpoint(None)


def test_inference_leaves_no_gradient_and_no_dropout(segmenter, tiny_model):
    by_torch = load(tiny_model, device="cpu", engine="torch")
    encoded = by_torch.encode(PHOTO)
    assert not by_torch.engine.network.training
    assert not any(level.requires_grad for level in encoded.features)
    encoded = segmenter.encode(PHOTO)
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
    assert logits.shape == (2, 1, 16, 16) and logits.dtype == np.float32
    probabilities = to_photograph(logits, encoded.size)
    for answer, probability in zip(segmenter.segment(encoded, ["the red bag", "dog"]), probabilities, strict=True):
        assert np.array_equal(answer.mask, probability > segmenter.threshold)


def test_a_model_can_see_photographs_letterboxed(tiny_model, segmenter, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "letterbox": True}))
    letterboxed = load(folder, device="cpu")
    (answer,) = letterboxed.segment(letterboxed.encode(PHOTO), ["the red bag"])
    features = segmenter.engine.encode(to_square(Image.fromarray(PHOTO), 64, letterbox=True)[None])
    logits = segmenter.mask_logits(EncodedPhoto(Image.fromarray(PHOTO), features), ["the red bag"])
    assert np.array_equal(answer.mask, to_photograph(logits, (50, 90), letterbox=64)[0] > letterboxed.threshold)
    assert letterboxed.letterbox and not segmenter.letterbox
    assert not np.array_equal(answer.mask, segmenter(PHOTO, "the red bag").mask)


@pytest.fixture
def calibrated(tiny_model, tmp_path):
    """Writes a calibration into a copy of the tiny model and loads it."""

    def load_with(calibration):
        folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        write_calibration(folder, calibration)
        return load(folder, device="cpu")

    return load_with


def test_the_checkpoint_s_calibration_judges_every_answer(segmenter, calibrated):
    """Weights by hand: the score depends on the words alone, found on those that the model has never seen."""
    words = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    known = (0.0, 0.0, 0.0, -8.0, 0.0, 4.0)
    own = calibrated(Calibration(words, known, 0.5))
    one, two, strange = own(PHOTO, ["left", "the dog", "zebra"])
    assert (one.score, two.score) == pytest.approx((1 / 2, 2 / 3))  # the logistic function of ln(words)
    assert (one.found, two.found, strange.found) == (True, True, False)
    np.testing.assert_array_equal(one.mask, segmenter(PHOTO, "left").mask)
    assert one.to_dict()["found"] is True
    (nothing,) = own.segment(own.encode(PHOTO), ["left"], threshold=0.9999)
    assert (nothing.score, nothing.found) == (0.0, False)


def test_found_is_none_where_the_checkpoint_does_not_say(segmenter, calibrated):
    scored = calibrated(Calibration((0.0, 0.0, 0.0, 0.0, 1.0, 0.0)))
    for own in (segmenter, scored):
        encoded = own.encode(PHOTO)
        for threshold in (0.5, 0.9999):
            assert own.segment(encoded, ["left"], threshold=threshold)[0].found is None


def test_a_damaged_calibration_stops_the_loading(calibrated, tmp_path):
    calibrated(Calibration((0.0,) * 6))
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"inside"', '"outside"'))
    with pytest.raises(RefsegError, match=r"calibration in config.json is unusable .* refseg calibrate"):
        load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_word_attention_goes_by_the_words_that_are_read(tiny_model, engine):
    segmenter = load(tiny_model, device="cpu", engine=engine)
    encoded = segmenter.encode(PHOTO)
    found = segmenter.word_attention(encoded, "The zebra, left")
    assert [word for word, _ in found] == ["the", "zebra", "left"]
    assert all(shares.shape == (4, 4) and shares.min() > 0 for _, shares in found)
    assert (sum(shares for _, shares in found) < 1).all()
    assert [word for word, _ in segmenter.word_attention(encoded, "?!")] == [""]


def test_a_network_without_attention_says_so(segmenter, tiny_model):
    other = load(tiny_model, device="cpu", engine="torch")
    encoded = other.encode(PHOTO)
    other.engine.network.fusion = ConcatFusion(16)
    with pytest.raises(RefsegError, match="fusion: sfm"):
        other.word_attention(encoded, "the dog")


def test_the_engines_answer_alike(segmenter, tiny_model):
    plain = load(tiny_model, device="cpu", engine="torch")
    assert isinstance(segmenter.engine, OnnxEngine) and isinstance(plain.engine, TorchEngine)
    one, other = segmenter.encode(PHOTO), plain.encode(PHOTO)
    expected = plain.mask_logits(other, EXPRESSIONS)
    np.testing.assert_allclose(segmenter.mask_logits(one, EXPRESSIONS), expected, rtol=1e-4, atol=1e-4)
    for expression in EXPRESSIONS:
        (words, shares), (same, attended) = segmenter.attention(one, expression), plain.attention(other, expression)
        assert words == same
        np.testing.assert_allclose(shares, attended, atol=1e-5)


def test_bfloat16_stays_near(segmenter, tiny_model):
    other = load(tiny_model, device="cpu", precision="bfloat16")
    expected = segmenter.mask_logits(segmenter.encode(PHOTO), EXPRESSIONS)
    found = other.mask_logits(other.encode(PHOTO), EXPRESSIONS)
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    assert np.abs(found - expected).mean() < 0.1 * expected.std()


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"engine": "tensorrt"}, "one of: auto, onnx, torch, openvino"),
        ({"engine": "onnx", "precision": "bfloat16"}, "onnx computes in float32"),
        ({"engine": "onnx", "device": "cuda"}, "leave device out"),
        ({"threads": 0}, "threads is 0; give a whole number"),
        ({"precision": "float16"}, "float32 and bfloat16"),
        ({"precision": "int8"}, "openvino also int8"),
        ({"engine": "openvino", "device": "cuda"}, "leave device out|no usable device"),
    ],
)
def test_an_engine_that_is_not_there(tiny_model, wrong, cure):
    with pytest.raises(RefsegError, match=cure):
        load(tiny_model, **wrong)
