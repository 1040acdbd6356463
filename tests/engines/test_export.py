"""What is exported answers as PyTorch does, and the program that uses it needs neither PyTorch nor refseg."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refseg.checkpoints import Checkpoint, find_checkpoint
from refseg.cli import main
from refseg.engines.export import describe, export
from refseg.engines.onnx import OnnxEngine
from refseg.engines.tracing import adaptive_max_pool
from refseg.errors import RefsegError
from refseg.masks import iou
from refseg.photo import read_photo
from refseg.segmenter import Segmenter, load
from refseg.transforms import to_photograph, to_square
from refseg.words import Tokens

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "onnx_only.py"
PHOTOS = ROOT.parent / "shared" / "data"
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
EXPRESSIONS = ["the dog", "red bag", "the small white cat behind the man", "?!", "the zebra, left 🦓", "left " * 30]
ALONE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "refseg", "torchvision"):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program where torch, transformers and refseg cannot be imported."""


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return find_checkpoint(tiny_model)


def plan_of(checkpoint: Checkpoint, format: str = "onnx") -> dict[str, Any]:
    return describe(checkpoint, ["feature_0", "feature_1"], 16, format)


def opened(folder: Path) -> OnnxEngine:
    return OnnxEngine(folder / "image_encoder.onnx", folder / "expression_decoder.onnx", None, None, 1)


def by(engine: OnnxEngine, segmenter: Segmenter) -> Segmenter:
    """The segmenter with another engine."""
    return Segmenter(engine, segmenter.tokenizer, segmenter.settings)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    paths = export(checkpoint, folder)
    assert sorted(folder.iterdir()) == sorted(paths), "nothing else is left behind"
    return folder


@pytest.mark.parametrize(("whole", "wanted"), [(8, 8), (4, 8), (2, 8), (12, 4), (7, 3), (5, 8), (3, 7)])
@pytest.mark.parametrize("wider", [0, 1])
def test_pooling_in_onnx_s_words_is_adaptive_max_pooling(whole: int, wanted: int, wider: int) -> None:
    maps = torch.rand(2, 3, whole, whole + wider)
    assert torch.equal(adaptive_max_pool(maps, wanted), F.adaptive_max_pool2d(maps, wanted))


@pytest.mark.parametrize("size", [(50, 90), (16, 16), (7, 5), (1, 1), (200, 3)])
def test_the_example_brings_masks_back_as_refseg_does(example: dict[str, Any], size: tuple[int, int]) -> None:
    logits = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    for letterbox in (None, 64):
        spans = example["shown_at"](size, 64) if letterbox else [(0, 64), (0, 64)]
        shares = [(start / 64, length / 64) for start, length in spans]
        found = 1 / (1 + np.exp(-example["resize"](logits.numpy(), size, shares)))
        expected = to_photograph(logits[None, None].numpy(), size, letterbox=letterbox)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_example_reads_words_and_pixels_as_refseg_does(
    example: dict[str, Any], segmenter: Segmenter, checkpoint: Checkpoint
) -> None:
    plan = json.loads(json.dumps(plan_of(checkpoint)))
    for expression in EXPRESSIONS:
        ids = example["to_words"](expression, checkpoint.folder, plan["words"])
        np.testing.assert_array_equal(ids, segmenter.tokenizer([expression]).ids)
    photo = read_photo(PHOTO)
    square = example["to_square"](photo, plan["image"])
    np.testing.assert_allclose(square, to_square(photo, 64)[None], atol=1e-7)
    letterboxed = example["to_square"](photo, {**plan["image"], "letterbox": True})
    np.testing.assert_allclose(letterboxed, to_square(photo, 64, letterbox=True)[None], atol=1e-7)


def test_what_is_written_beside_the_graphs(checkpoint: Checkpoint) -> None:
    plan = plan_of(checkpoint)
    assert (plan["image"]["side"], plan["image"]["letterbox"], plan["words"]["max_words"]) == (64, False, 25)
    assert plan["mask"]["logits"] == [16, 16] and plan["mask"]["threshold"] == 0.5
    assert plan_of(checkpoint, "openvino")["image_encoder"]["file"] == "image_encoder.xml"


def test_what_is_not_exported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(RefsegError, match="one of: onnx, openvino"):
        export(checkpoint, tmp_path, "tflite")
    with pytest.raises(RefsegError, match='engine="openvino", precision="int8"'):
        export(checkpoint, tmp_path, "openvino", "int8")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_into_the_folder(tiny_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []

    def write(checkpoint: Checkpoint, folder: Path, *how: str) -> list[Path]:
        asked.append((checkpoint.folder, *how))
        return [folder / "image_encoder.onnx"]

    monkeypatch.setattr("refseg.engines.export.export", write)
    out = tmp_path / "new"
    assert main(["export", str(tiny_model), "--out", str(out), "--precision", "int8"]) == 0
    assert asked == [(tiny_model, "onnx", "int8")] and capsys.readouterr().out.strip() == str(
        out / "image_encoder.onnx"
    )


def test_the_graphs_hold_their_weights_and_answer_as_pytorch(
    segmenter: Segmenter, exported: Path, tiny_model: Path
) -> None:
    other, plain = by(opened(exported), segmenter), load(tiny_model, device="cpu", engine="torch")
    expected = plain.mask_logits(plain.encode(PHOTO), EXPRESSIONS)
    np.testing.assert_allclose(other.mask_logits(other.encode(PHOTO), EXPRESSIONS), expected, rtol=1e-3, atol=1e-3)
    plan = json.loads((exported / "preprocessing.json").read_text())
    assert plan["expression_decoder"]["inputs"] == ["ids", *plan["image_encoder"]["outputs"]]


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_ids_behind_the_mask_change_nothing(tiny_model: Path, engine: str) -> None:
    segmenter = load(tiny_model, device="cpu", engine=engine)
    features = segmenter.encode(PHOTO).features
    ids = np.zeros((1, 25), dtype=np.int64)
    ids[0, :3] = 2, 3, 4
    rubbish = np.where(ids > 0, ids, 5)
    found = segmenter.engine.answer(Tokens(rubbish, ids > 0, [()], [False]), features).mask_logits
    alone = segmenter.engine.answer(Tokens(ids[:, :3], ids[:, :3] > 0, [()], [False]), features).mask_logits
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_example_alone_gives_refseg_s_mask(segmenter: Segmenter, exported: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(PHOTO).save(tmp_path / "photo.png", exif=exif)
    for expression in EXPRESSIONS:
        found = _run_alone(tmp_path / "photo.png", expression, exported, tmp_path / "mask.png")
        assert _agreement(found, segmenter(tmp_path / "photo.png", expression).mask) >= 0.999


@pytest.mark.slow
def test_int8_is_smaller_and_stays_near(
    segmenter: Segmenter, checkpoint: Checkpoint, exported: Path, tmp_path: Path
) -> None:
    export(checkpoint, tmp_path, precision="int8")
    for name in ("image_encoder.onnx", "expression_decoder.onnx"):
        assert (tmp_path / name).stat().st_size < (exported / name).stat().st_size
    expected, found = (
        other.mask_logits(other.encode(PHOTO), EXPRESSIONS).flatten()
        for other in (by(opened(folder), segmenter) for folder in (exported, tmp_path))
    )
    assert not np.array_equal(expected, found)
    # Random weights lose far more to 8 bits than trained ones; docs/export.md has the loss of IoU on photographs.
    assert np.corrcoef(expected, found)[0, 1] > 0.8


@pytest.mark.slow
def test_openvino_answers_as_onnx(checkpoint: Checkpoint, exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    export(checkpoint, tmp_path, "openvino")
    plan = json.loads((tmp_path / "preprocessing.json").read_text())
    core = openvino.Core()
    encoder, decoder = (
        core.compile_model(tmp_path / plan[part]["file"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for part in ("image_encoder", "expression_decoder")
    )
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    onnx = opened(exported)
    features = onnx.encode(image)
    found = encoder([image])
    for place, feature in enumerate(features):
        np.testing.assert_allclose(found[place], feature, rtol=1e-3, atol=1e-3)
    for ids in (np.array([[2, 3, 4]]), np.array([[5]])):
        answered = decoder([ids, *features])[0]
        expected = onnx.answer(Tokens(ids, ids > 0, [()], [False]), features).mask_logits
        np.testing.assert_allclose(answered, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not beside the checkout")
def test_the_shipped_model_finds_the_same_by_every_engine(tmp_path: Path) -> None:
    shipped = load(device="cpu")
    export(find_checkpoint(None), tmp_path)
    others = [load(device="cpu", engine="torch"), by(opened(tmp_path), shipped)]
    street, coco = (sorted((PHOTOS / name / "val" / "images").iterdir()) for name in ("photos-fashion", "photos-coco"))
    asked = ["the person", "the jacket on the left", "the wall"]
    for photo in (street[0], street[-1], coco[0]):
        for other in others:
            for one, two in zip(shipped(photo, asked), other(photo, asked), strict=True):
                assert _agreement(one.mask, two.mask) >= 0.999
    alone = _run_alone(street[0], asked[0], tmp_path, tmp_path / "m.png")
    assert _agreement(alone, shipped(street[0], asked[0]).mask) >= 0.999


def _run_alone(photo: Path, expression: str, model: Path, out: Path) -> np.ndarray:
    command = [sys.executable, "-c", ALONE, EXAMPLE, photo, expression, "--model", model, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(out)) > 0


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The IoU, 1 where both are empty."""
    return iou(one, other) if (one | other).any() else 1.0
