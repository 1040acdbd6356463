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

from refseg.cli import main
from refseg.engines.export import ExportedNetwork, _adaptive_max_pool, describe, export
from refseg.engines.graphs import ExpressionGraph
from refseg.errors import RefsegError
from refseg.models.interface import TokenBatch
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.photo import read_photo
from refseg.segmenter import Segmenter, load
from refseg.transforms import to_photograph, to_square

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


def plan_of(segmenter: Segmenter, format: str = "onnx") -> dict[str, Any]:
    return describe(segmenter.model.config, segmenter.tokenizer, segmenter.threshold, format)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    pytest.importorskip("onnxruntime")
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def exported(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("exported")
    paths = export(segmenter, folder)
    assert sorted(folder.iterdir()) == sorted(paths), "nothing else is left behind"
    return folder


@pytest.mark.parametrize(("whole", "wanted"), [(8, 8), (4, 8), (2, 8), (12, 4), (7, 3), (5, 8), (3, 7)])
def test_pooling_by_gathering_is_adaptive_max_pooling(whole: int, wanted: int) -> None:
    maps = torch.rand(2, 3, whole, whole + 1)
    assert torch.equal(_adaptive_max_pool(maps, [wanted, wanted])[0], F.adaptive_max_pool2d(maps, wanted))


@pytest.mark.parametrize("size", [(50, 90), (16, 16), (7, 5), (1, 1), (200, 3)])
def test_the_example_brings_masks_back_as_refseg_does(example: dict[str, Any], size: tuple[int, int]) -> None:
    logits = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    found = 1 / (1 + np.exp(-example["resize"](logits.numpy(), size)))
    np.testing.assert_allclose(found, to_photograph(logits[None, None], size)[0].numpy(), atol=1e-5)


def test_the_example_reads_words_and_pixels_as_refseg_does(
    example: dict[str, Any], segmenter: Segmenter, tiny_model: Path
) -> None:
    plan = json.loads(json.dumps(plan_of(segmenter)))
    for expression in EXPRESSIONS:
        ids, mask = example["to_words"](expression, tiny_model, plan["words"])
        tokens = segmenter.tokenizer([expression])
        length = tokens.ids.shape[1]
        assert ids.shape == mask.shape == (1, segmenter.tokenizer.max_words)
        assert ids[0, :length].tolist() == tokens.ids[0].tolist() and not ids[0, length:].any()
        assert mask[0].sum() == length
    photo = read_photo(PHOTO)
    square = example["to_square"](photo, plan["image"])
    np.testing.assert_allclose(square, to_square(photo, 64)[None].numpy(), atol=1e-7)


def test_what_is_written_beside_the_graphs(segmenter: Segmenter) -> None:
    plan = plan_of(segmenter)
    assert (plan["image"]["side"], plan["words"]["max_words"]) == (64, 25)
    assert plan["mask"]["logits"] == [16, 16] and plan["mask"]["threshold"] == segmenter.threshold
    assert plan_of(segmenter, "openvino")["image_encoder"]["file"] == "image_encoder.xml"


def test_what_is_not_exported(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(RefsegError, match="one of: onnx, openvino"):
        export(segmenter, tmp_path, "tflite")
    with pytest.raises(RefsegError, match='engine="openvino", precision="int8"'):
        export(segmenter, tmp_path, "openvino", "int8")
    with pytest.raises(RefsegError, match="refseg export --out"):
        ExportedNetwork(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_into_the_folder(tiny_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []

    def write(segmenter: Segmenter, folder: Path, *how: str) -> list[Path]:
        asked.append((segmenter.image_size, *how))
        return [folder / "image_encoder.onnx"]

    monkeypatch.setattr("refseg.engines.export.export", write)
    out = tmp_path / "new"
    assert main(["export", str(tiny_model), "--out", str(out), "--precision", "int8"]) == 0
    assert asked == [(64, "onnx", "int8")] and capsys.readouterr().out.strip() == str(out / "image_encoder.onnx")


@pytest.mark.slow
def test_onnx_answers_as_pytorch_whatever_the_padding_and_the_number(segmenter: Segmenter, exported: Path) -> None:
    """PyTorch's words are not padded to 25; the graph's are, so equal answers mean that padding changes none."""
    other = Segmenter(segmenter.model, segmenter.tokenizer, network=ExportedNetwork(exported))
    encoded = other.encode(PHOTO)
    for one, own in zip(encoded.levels, segmenter.model.encode(to_square(read_photo(PHOTO), 64)[None]), strict=True):
        torch.testing.assert_close(one, own, rtol=1e-4, atol=1e-4)
    expected = segmenter.mask_logits(segmenter.encode(PHOTO), EXPRESSIONS)
    torch.testing.assert_close(other.mask_logits(encoded, EXPRESSIONS), expected, rtol=1e-3, atol=1e-3)
    for number, expression in enumerate(EXPRESSIONS):
        alone = other.mask_logits(encoded, [expression])
        torch.testing.assert_close(alone, expected[number : number + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "aggregation"), [("concat", "sum"), ("sfm", "convlstm")])
def test_every_variant_takes_any_number_of_expressions(tiny_model: Path, fusion: str, aggregation: str) -> None:
    """Traced, not yet written as ONNX: what makes a number a constant shows here."""
    config = load(tiny_model, device="cpu").model.config
    model = SHNet(SHNetConfig.from_dict({**config.to_dict(), "fusion": fusion, "aggregation": aggregation})).eval()
    ids = torch.arange(10).view(2, 5) % 4
    graph = ExpressionGraph(model)
    with torch.no_grad():
        levels = model.encode(torch.rand(1, 3, 64, 64))
        graph(ids, ids > 0, *levels)
        count = torch.export.Dim("expressions")
        shapes = ({0: count}, {0: count}, None, None, None)
        traced = torch.export.export(graph, (ids, ids > 0, *levels), dynamic_shapes=shapes).module()
        three = torch.cat([ids, ids[:1]])
        torch.testing.assert_close(traced(three, three > 0, *levels), graph(three, three > 0, *levels))


@pytest.mark.slow
def test_ids_behind_the_mask_change_nothing(segmenter: Segmenter, exported: Path) -> None:
    network = ExportedNetwork(exported)
    levels = network.encode(torch.rand(1, 3, 64, 64))
    ids = torch.zeros(1, 25, dtype=torch.long)
    ids[0, :3] = torch.tensor([2, 3, 4])
    mask = ids > 0
    rubbish = torch.where(mask, ids, torch.full_like(ids, 5))
    torch.testing.assert_close(
        *(network(TokenBatch(read, mask), features=levels).mask_logits for read in (rubbish, ids))
    )


@pytest.mark.slow
def test_the_example_alone_gives_refseg_s_mask(segmenter: Segmenter, exported: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(PHOTO).save(tmp_path / "photo.png", exif=exif)
    for expression in EXPRESSIONS:
        found = _run_alone(tmp_path / "photo.png", expression, exported, tmp_path / "mask.png")
        expected = segmenter(tmp_path / "photo.png", expression).mask
        assert _iou(found, expected) >= 0.999


@pytest.mark.slow
def test_int8_is_smaller_and_stays_near(segmenter: Segmenter, exported: Path, tmp_path: Path) -> None:
    export(segmenter, tmp_path, precision="int8")
    for name in ("image_encoder.onnx", "expression_decoder.onnx"):
        assert (tmp_path / name).stat().st_size < (exported / name).stat().st_size
    plain, small = (
        Segmenter(segmenter.model, segmenter.tokenizer, network=ExportedNetwork(folder))
        for folder in (exported, tmp_path)
    )
    expected, found = (own.mask_logits(own.encode(PHOTO), EXPRESSIONS).flatten() for own in (plain, small))
    assert not torch.equal(expected, found)
    # Random weights lose far more to 8 bits than trained ones; docs/export.md has the loss of IoU on photographs.
    assert float(torch.corrcoef(torch.stack([expected, found]))[0, 1]) > 0.8


@pytest.mark.slow
def test_openvino_answers_as_onnx(segmenter: Segmenter, exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    export(segmenter, tmp_path, "openvino")
    plan = json.loads((tmp_path / "preprocessing.json").read_text())
    core = openvino.Core()
    encoder, decoder = (
        core.compile_model(tmp_path / plan[part]["file"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for part in ("image_encoder", "expression_decoder")
    )
    images = torch.rand(1, 3, 64, 64)
    onnx = ExportedNetwork(exported)
    levels = onnx.encode(images)
    found = encoder([images.numpy()])
    for place, level in enumerate(levels):
        np.testing.assert_allclose(found[place], level.numpy(), rtol=1e-3, atol=1e-3)
    ids = torch.zeros(2, 25, dtype=torch.long)
    ids[0, :3], ids[1, 0] = torch.tensor([2, 3, 4]), 5
    answered = decoder([ids.numpy(), (ids > 0).numpy(), *(level.numpy() for level in levels)])[0]
    np.testing.assert_allclose(
        answered, onnx(TokenBatch(ids, ids > 0), features=levels).mask_logits.numpy(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not beside the checkout")
def test_the_shipped_model_exported_finds_the_same_on_photographs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    shipped = load(device="cpu")
    export(shipped, tmp_path)
    other = Segmenter(shipped.model, shipped.tokenizer, network=ExportedNetwork(tmp_path))
    street, coco = (sorted((PHOTOS / name / "val" / "images").iterdir()) for name in ("photos-fashion", "photos-coco"))
    for photo in (street[0], street[-1], coco[0]):
        asked = ["the person", "the jacket on the left", "the wall"]
        for one, two in zip(shipped(photo, asked), other(photo, asked), strict=True):
            assert _iou(one.mask, two.mask) >= 0.999
    assert (
        _iou(_run_alone(street[0], asked[0], tmp_path, tmp_path / "m.png"), shipped(street[0], asked[0]).mask) >= 0.999
    )


def _run_alone(photo: Path, expression: str, model: Path, out: Path) -> np.ndarray:
    command = [sys.executable, "-c", ALONE, EXAMPLE, photo, expression, "--model", model, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(out)) > 0


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0
