"""Bad photographs, expressions, thresholds and values through Python: one sentence that names the cure."""

from __future__ import annotations

import io
import os
import warnings

import numpy as np
import pytest
import torch
from cases_checkpoints import CHECKPOINTS, FITTING
from cases_photographs import EITHER, NOISE, PHOTOGRAPHS, SIZE, noise
from cases_words import EXPRESSIONS, THRESHOLDS, Refusal
from conftest import in_time, sentence
from PIL import Image

from refseg.errors import RefsegError
from refseg.photo import read_photo
from refseg.segmenter import load
from refseg.words import clean_expression


def refusal(function, *arguments, **options) -> str:
    with warnings.catch_warnings(), in_time(), pytest.raises(RefsegError) as caught:
        warnings.simplefilter("error")
        function(*arguments, **options)
    return sentence(str(caught.value))


def test_the_table_is_as_large_as_it_says():
    rows = len(PHOTOGRAPHS) + len(EXPRESSIONS) + len(THRESHOLDS) + len(VALUES) + len(CHECKPOINTS) + len(FITTING)
    assert rows > 500


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * case.large) for name, case in PHOTOGRAPHS.items()]
)
def test_photograph(segmenter, unaffected, name):
    case = PHOTOGRAPHS[name]
    content = case.make()
    assert len(content) < 2_000_000
    if isinstance(case.expected, tuple):
        with in_time():
            assert segmenter(content, "the dog").mask.shape == case.expected
    elif case.expected == EITHER:
        try:
            assert segmenter(content, "the dog").mask.ndim == 2
        except RefsegError as fault:
            sentence(str(fault))
    else:
        assert case.expected in refusal(segmenter, content, "the dog")
    unaffected()


VALUES = {
    "None": (None, "give a path"),
    "a number": (7, "give a path"),
    "a list": ([[0, 0], [0, 0]], "give a path"),
    "a tensor": (torch.zeros(3, 4, 4), "uint8 array"),
    "an open file": (io.BytesIO(noise()), "give a path"),
    "no bytes": (bytearray(), "0 bytes"),
    "every other byte": (memoryview(noise())[::2], "known format"),
    "channels first": (np.zeros((3, 64, 64), np.uint8), "transpose(1, 2, 0)"),
    "one channel first": (np.zeros((1, 64, 64), np.uint8), "transpose(1, 2, 0)"),
    "a batch": (np.zeros((2, 4, 4, 3), np.uint8), "(H, W, 3)"),
    "two channels": (np.zeros((4, 4, 2), np.uint8), "(H, W, 3)"),
    "a line": (np.zeros(9, np.uint8), "(H, W, 3)"),
    "a scalar": (np.uint8(3).reshape(()), "(H, W, 3)"),
    "no rows": (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    "shares": (np.full((4, 4, 3), 0.5), "array * 255"),
    "half floats": (np.full((4, 4, 3), 0.5, np.float16), "array * 255"),
    "floats": (np.full((4, 4, 3), 200.0), "astype(np.uint8)"),
    "NaN": (np.full((4, 4, 3), np.nan), "NaN"),
    "infinity": (np.full((4, 4, 3), -np.inf), "infinity"),
    "negative": (np.full((4, 4, 3), -1), "range"),
    "far above white": (np.full((4, 4, 3), 1e6), "range"),
    "16 bits": (np.full((4, 4), 4000, np.uint16), "array / 257"),
    "bool": (np.zeros((4, 4), bool), "bool"),
    "complex": (np.zeros((4, 4, 3), complex), "complex"),
    "objects": (np.zeros((4, 4, 3), object), "object"),
    "text": (np.zeros((4, 4), "U3"), "astype"),
    "fields": (np.zeros((4, 4), [("r", "u1")]), "astype"),
    "14,000² of one value": (np.broadcast_to(np.uint8(0), (14_000, 14_000, 3)), "100 million"),
    "a million squared": (np.broadcast_to(np.uint8(0), (10**6, 10**6)), "100 million"),
    "a million squared of floats": (np.broadcast_to(np.float64(0), (10**6, 10**6, 3)), "100 million"),
    "an image without pixels": (Image.new("RGB", (0, 5)), "no pixels"),
    "an image of NaN": (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "finite"),
    "an address": ("https://example.org/cat.jpg", "download"),
    "a path of no file": ("missing.jpg", "check the path"),
    "an empty path": ("", "path is empty"),
    "a path with NUL": ("a\0b.jpg", "cannot be opened"),
    "a path of 300 letters": ("x" * 300, "cannot be opened"),
    "a path with a line break": ("line\nbreak.jpg", "check the path"),
    "a path that is no text": ("\ud800.jpg", "path"),
    "a folder": (os.path.curdir, "folder"),
    "a device": (os.devnull, "device"),
    "a file that cannot be read": ("/proc/self/mem", "cannot be read|no file"),
}


@pytest.mark.parametrize("name", VALUES)
def test_value_that_is_no_photograph(name):
    source, words = VALUES[name]
    said = refusal(read_photo, source)
    assert any(each in said for each in words.split("|"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "device" in refusal(read_photo, tmp_path / "pipe.jpg")


def test_an_image_whose_file_is_cut_short(tmp_path):
    (tmp_path / "half.jpg").write_bytes(noise("JPEG")[:1500])
    assert "damaged" in refusal(read_photo, Image.open(tmp_path / "half.jpg"))


@pytest.mark.parametrize(
    "array",
    [
        NOISE[::-1, ::-1],
        NOISE[..., ::-1],
        np.asfortranarray(NOISE),
        NOISE.repeat(2, 1)[:, ::2],
        np.broadcast_to(NOISE[:1], NOISE.shape),
    ],
    ids=["both sides turned", "channels turned", "columns first", "every other column", "one row repeated"],
)
def test_an_array_is_read_whatever_its_strides(segmenter, array):
    np.testing.assert_array_equal(read_photo(array), array)
    assert (
        segmenter(array, "the dog").mask.tobytes() == segmenter(np.ascontiguousarray(array), "the dog").mask.tobytes()
    )


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(segmenter, unaffected, name):
    text, expected = EXPRESSIONS[name]
    if isinstance(expected, Refusal):
        assert expected.words in refusal(segmenter, NOISE, text)
        assert expected.words in refusal(segmenter, NOISE, ["the dog", text])
    else:
        read = text if expected is None else expected
        with in_time():
            answer = segmenter(NOISE, text)
        assert answer.expression == read == clean_expression(read)
        assert answer.mask.shape == SIZE
        assert answer.mask.tobytes() == segmenter(NOISE, read).mask.tobytes()
    unaffected()


@pytest.mark.parametrize("value", [None, 7, b"the red bag", ["the dog"]], ids=repr)
def test_values_that_are_no_expression(value):
    assert "str" in refusal(clean_expression, value)


@pytest.mark.parametrize("typed", THRESHOLDS)
def test_threshold(segmenter, tiny_model, typed):
    try:
        value = float(typed)
    except ValueError:
        value = typed
    encoded = segmenter.encode(NOISE)
    if THRESHOLDS[typed]:
        (answer,) = segmenter.segment(encoded, ["the dog"], threshold=value)
        assert answer.mask.shape == SIZE
    else:
        assert "between 0 and 1" in refusal(segmenter.segment, encoded, ["the dog"], threshold=value)


@pytest.mark.parametrize("threshold", [0, "0.5"], ids=repr)
def test_threshold_of_a_whole_segmenter(tiny_model, threshold):
    assert "between 0 and 1" in refusal(load, tiny_model, device="cpu", threshold=threshold)


def test_calls_that_mix_things_up(segmenter):
    encoded = segmenter.encode(NOISE)
    assert "encode(photo)" in refusal(segmenter.segment, NOISE, ["dog"])
    assert "list" in refusal(segmenter.segment, encoded, "dog")
    assert "list" in refusal(segmenter, NOISE, None)
    assert "batch_size" in refusal(segmenter.segment, encoded, ["dog"], batch_size=0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(checkpoint, capfd, name):
    damage, words = CHECKPOINTS[name]
    damage(checkpoint)
    assert words in refusal(load, checkpoint, device="cpu")
    assert capfd.readouterr().err == "", "the one sentence is all there is to read"


@pytest.mark.parametrize("name", FITTING)
def test_checkpoint_that_is_only_unusual(checkpoint, segmenter, name):
    FITTING[name](checkpoint)
    answer = load(checkpoint, device="cpu")(NOISE, "the dog")
    assert answer.mask.tobytes() == segmenter(NOISE, "the dog").mask.tobytes()


def test_models_that_are_not_there(tmp_path, tiny_model, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert "folder" in refusal(load, tmp_path / "missing", device="cpu")
    assert "is a file" in refusal(load, tiny_model / "config.json", device="cpu")
    assert "hub" in refusal(load, "nobody/nothing", device="cpu")
    refusal(load, "a\nb", device="cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "meta", "cpu:x", None])
def test_devices_that_are_not_there(tiny_model, device):
    assert "device" in refusal(load, tiny_model, device=device)
