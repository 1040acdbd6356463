"""Every kind of bad input ends in one sentence that names the cure."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from refseg.errors import RefsegError
from refseg.photo import read_photo
from refseg.segmenter import MAX_CHARACTERS, clean_expression, load

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def refusal(function, *arguments, **options) -> str:
    """The message, after the rules that hold for all of them."""
    with warnings.catch_warnings(), pytest.raises(RefsegError) as caught:
        warnings.simplefilter("error")
        function(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line that any terminal shows"
    assert ";" in message or ": " in message, "what is wrong; what to do"
    assert not message.endswith(".")
    return message


def file_of(format: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(NOISE).save(content, format)
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width×height pixels and holds next to none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


FILES = {
    "empty": (b"", "0 bytes"),
    "text": (b"not a photograph", "text"),
    "text in other letters": ("фото".encode() * 300, "text"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "web page"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "pdf": (b"%PDF-1.7\n\xe2\xe3", "PDF"),
    "gif": (file_of("GIF"), "GIF"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
    "archive": (b"PK\x03\x04\x14\0", "ZIP"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "unknown": (bytes(range(128, 256)) * 4, "known format"),
    "zeros": (bytes(100), "known format"),
    "jpeg 2000": (file_of("JPEG2000") if "JPEG2000" in Image.SAVE else b"\0\0\0\x0cjP  ", "JPEG 2000"),
    "large": (png_header(11_000, 10_000), "100 million"),
    "bomb": (png_header(60_000, 60_000), "100 million"),
    "no pixels": (png_header(0, 10), ""),
    "png of no data": (png_header(10, 10), "damaged"),
    **{f"half a {f}": (file_of(f)[: len(file_of(f)) // 2], "damaged") for f in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")},
    **{f"head of a {f}": (file_of(f)[:16], "damaged") for f in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")},
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_photograph(name, tmp_path):
    content, expected = FILES[name]
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    message = refusal(read_photo, file)
    assert expected in message and str(file) in message
    assert expected in refusal(read_photo, content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_damage_anywhere_is_refused_or_read_but_never_another_error(format):
    whole, random = file_of(format), np.random.default_rng(1)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, min(len(damaged), 400), 4)] = random.integers(0, 256, 4)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert read_photo(damaged.tobytes()).mode == "RGB"
        except RefsegError as fault:
            assert "\n" not in str(fault)


def test_paths_that_lead_to_no_file(tmp_path):
    assert "check the path" in refusal(read_photo, tmp_path / "missing.jpg")
    assert "folder" in refusal(read_photo, tmp_path)
    assert "download" in refusal(read_photo, "https://example.org/cat.jpg")
    for path in ("", "a\0b.jpg", "x" * 5000, "line\nbreak.jpg", "\ud800.jpg"):
        refusal(read_photo, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "device" in refusal(read_photo, tmp_path / "pipe.jpg")


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        (None, "give a path"),
        (torch.zeros(3, 4, 4), "uint8 array"),
        (np.zeros((3, 64, 64), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "(H, W, 3)"),
        (np.zeros((4, 4, 2), np.uint8), "(H, W, 3)"),
        (np.uint8(3).reshape(()), "(H, W, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.full((4, 4, 3), 0.5), "array * 255"),
        (np.full((4, 4, 3), 200.0), "astype(np.uint8)"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), -1), "range"),
        (np.full((4, 4, 3), 1e6), "range"),
        (np.full((4, 4), 4000, np.uint16), "array / 257"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4, 3), object), "object"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_values_that_are_no_photograph(source, cure):
    assert cure in refusal(read_photo, source)


def test_an_image_whose_file_is_gone(tmp_path):
    (tmp_path / "half.jpg").write_bytes(file_of("JPEG")[:1500])
    assert "damaged" in refusal(read_photo, Image.open(tmp_path / "half.jpg"))


@pytest.mark.parametrize(
    ("expression", "cure"),
    [
        ("", "empty"),
        (" \t\n\u00a0", "empty"),
        ("\0\x07\x1b", "empty"),
        ("\u200b\u200d\ufeff", "empty"),
        ("red " * 25_000, f"{MAX_CHARACTERS:,}"),
        ("the \ud83d bag", "UTF-8"),
        (None, "str"),
        (7, "str"),
        (b"the red bag", "str"),
    ],
)
def test_expressions_that_say_nothing(expression, cure):
    assert cure in refusal(clean_expression, expression)


@pytest.mark.parametrize(
    ("expression", "cleaned"),
    [
        ("  the\tred\r\nbag ", "the red bag"),
        ("the\0red\x1bbag", "the red bag"),
        ("cafe\u0301", "café"),
        ("the 🐈 👨‍👩‍👧", "the 🐈 👨‍👩‍👧"),
        ("x" * MAX_CHARACTERS, "x" * MAX_CHARACTERS),
    ],
)
def test_expressions_that_only_need_cleaning(expression, cleaned):
    assert clean_expression(expression) == cleaned


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """A copy to damage."""
    return shutil.copytree(tiny_model, tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_checkpoint_that_lacks_or_damages_a_file(checkpoint, name):
    whole = (checkpoint / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[]", b"\xff\xfe"):
        (checkpoint / name).write_bytes(content)
        assert "checkpoint" in refusal(load, checkpoint, device="cpu")
    (checkpoint / name).unlink()
    assert name in refusal(load, checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 32}, "do not fit"),
        ({"fusion_layers": 2}, "do not fit"),
        ({"aggregation": "sum"}, "do not fit"),
        ({"vocabulary": 99}, "do not fit"),
        ({"model_type": "bert"}, "bert"),
        ({"threshold": 7}, "threshold"),
    ],
)
def test_checkpoint_whose_config_is_another_network_s(checkpoint, change, expected, capfd):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **change}))
    assert expected in refusal(load, checkpoint, device="cpu")
    assert capfd.readouterr().err == "", "the one sentence is all there is to read"


@pytest.mark.parametrize(("value", "expected"), [(float("nan"), "finite"), (float("inf"), "finite")])
def test_checkpoint_whose_weights_are_not_numbers(checkpoint, value, expected):
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.head.bias"].fill_(value)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert expected in refusal(load, checkpoint, device="cpu")


def test_checkpoint_with_another_model_s_vocabulary(checkpoint):
    from refseg.words import WordTokenizer

    WordTokenizer.from_expressions([f"word{n}" for n in range(99)]).save_pretrained(checkpoint)
    assert "two models" in refusal(load, checkpoint, device="cpu")


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


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 40, float("nan"), float("inf"), "0.5", True])
def test_thresholds_that_decide_nothing(tiny_model, threshold):
    assert "between 0 and 1" in refusal(load, tiny_model, device="cpu", threshold=threshold)


def test_calls_that_mix_things_up(tiny_model):
    segmenter = load(tiny_model, device="cpu")
    encoded = segmenter.encode(NOISE)
    assert "encode(photo)" in refusal(segmenter.segment, NOISE, ["dog"])
    assert "list" in refusal(segmenter.segment, encoded, "dog")
    assert "list" in refusal(segmenter, NOISE, None)
    assert "empty" in refusal(segmenter, NOISE, ["dog", ""])
    assert "batch_size" in refusal(segmenter.segment, encoded, ["dog"], batch_size=0)
    assert "threshold" in refusal(segmenter.segment, encoded, ["dog"], threshold=2)
