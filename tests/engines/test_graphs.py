"""Graphs beside a checkpoint: written once, weights stored once, never those of another network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from refseg.checkpoints import GRAPHS, find_checkpoint
from refseg.engines import graphs
from refseg.engines.onnx import OnnxEngine
from refseg.engines.torch import TorchEngine
from refseg.engines.tracing import write_graphs
from refseg.errors import RefsegError
from refseg.models.shnet import SHNet
from refseg.segmenter import load
from refseg.words import Tokens, WordTokenizer

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "huggingface_hub", "onnx", "onnxscript", "safetensors"):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
"""
"""As where `refseg[train]` is not installed."""


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model with its graphs."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


def test_the_weights_are_stored_once(folder: Path) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    for name in GRAPHS:
        assert (folder / name).stat().st_size < 0.8 * weights, "structure alone"
        assert b"model.safetensors" in (folder / name).read_bytes()


def test_the_shipped_model_has_its_graphs() -> None:
    """Without them an installation without PyTorch could not answer; `refseg.load()` writes them."""
    shipped = find_checkpoint(None)
    assert all(shipped.has_graph(shipped.folder / name) for name in GRAPHS)


def test_other_weights_of_the_same_network_answer_through_the_same_graphs(folder: Path) -> None:
    before = load(folder, device="cpu")(PHOTO, "the dog")
    content = bytearray((folder / "model.safetensors").read_bytes())
    place = find_checkpoint(folder).tensors["decoder.head.bias"]
    content[place.start : place.end] = np.float32(9).tobytes()
    (folder / "model.safetensors").write_bytes(content)
    written = [(folder / name).stat().st_mtime_ns for name in GRAPHS]
    after = load(folder, device="cpu")(PHOTO, "the dog")
    assert after.mask.mean() > before.mask.mean()
    assert [(folder / name).stat().st_mtime_ns for name in GRAPHS] == written


def test_what_is_said_about_answers_needs_no_other_graphs(folder: Path) -> None:
    stamp = find_checkpoint(folder).stamp
    config = json.loads((folder / "config.json").read_text())
    config |= {"threshold": 0.3, "training_data": "mine", "transformers_version": "99", "calibration": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert find_checkpoint(folder).stamp == stamp
    (folder / "config.json").write_text(json.dumps({**config, "pixel_mean": [0.1, 0.2, 0.3]}))
    assert find_checkpoint(folder).stamp != stamp


def test_graphs_of_another_network_are_not_used(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "fusion_heads": 4}))
    written = [(folder / name).stat().st_mtime_ns for name in GRAPHS]
    by_onnx, by_torch = (load(folder, device="cpu", engine=engine) for engine in ("onnx", "torch"))
    assert not set(written) & {(folder / name).stat().st_mtime_ns for name in GRAPHS}
    found, expected = (each.mask_logits(each.encode(PHOTO), ["the dog"]) for each in (by_onnx, by_torch))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_pytorch_a_checkpoint_answers_by_its_graphs(folder: Path) -> None:
    program = (
        WITHOUT_TORCH
        + """
import numpy as np, refseg
segmenter = refseg.load(sys.argv[1])
photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
answer = segmenter(photo, "the dog")
print(answer.to_rle()["counts"], len(segmenter.word_attention(segmenter.encode(photo), "the dog")))
"""
    )
    done = run(program, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [load(folder, device="cpu")(PHOTO, "the dog").to_rle()["counts"], "2"]


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_without_pytorch_one_sentence_says_what_to_install(folder: Path, engine: str) -> None:
    (folder / "image_encoder.onnx").unlink()
    program = (
        WITHOUT_TORCH
        + """
import importlib.util, refseg
importlib.util.find_spec = lambda name: None  # as it says where a package is not installed
try:
    refseg.load(sys.argv[1], engine=sys.argv[2], device="cpu")
except refseg.RefsegError as fault:
    print(fault)
"""
    )
    program = program.replace("import importlib.util, refseg", "import importlib.util")
    program = program.replace("\ntry:", "\nimport refseg\ntry:")
    done = run(program, folder, engine)
    assert 'pip install "refseg[train]"' in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1


def test_half_weights_answer_as_pytorch_widens_them(tmp_path: Path, folder: Path) -> None:
    SHNet.from_pretrained(folder).half().save_pretrained(tmp_path / "half")
    shutil.copy(folder / "tokenizer.json", tmp_path / "half")
    assert find_checkpoint(tmp_path / "half").tensors["decoder.head.weight"].dtype == "F16"
    by_onnx, by_torch = (load(tmp_path / "half", device="cpu", engine=engine) for engine in ("onnx", "torch"))
    found, expected = (each.mask_logits(each.encode(PHOTO), ["the dog", "left"]) for each in (by_onnx, by_torch))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_behind_a_link_as_the_hub_s_cache_has_them(folder: Path, tmp_path: Path) -> None:
    expected = load(folder, device="cpu")(PHOTO, "the dog").mask
    (tmp_path / "blobs").mkdir()
    for name in ("model.safetensors", *GRAPHS):
        (folder / name).rename(tmp_path / "blobs" / name)
        (folder / name).symlink_to(tmp_path / "blobs" / name)
    np.testing.assert_array_equal(load(folder, device="cpu")(PHOTO, "the dog").mask, expected)


def test_where_the_folder_cannot_be_written_the_cache_takes_the_graphs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in GRAPHS:
        (folder / name).rename(tmp_path / name)

    def write(checkpoint: object, place: Path) -> None:
        for name in GRAPHS:
            shutil.copy(tmp_path / name, place / name)

    monkeypatch.setattr("refseg.engines.tracing.write_graphs", write)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    assert load(folder, device="cpu")(PHOTO, "the dog").mask.shape == (50, 90)
    assert not any((folder / name).exists() for name in GRAPHS)
    monkeypatch.delattr("refseg.engines.tracing.write_graphs")
    assert graphs.find_graphs(find_checkpoint(folder)).is_relative_to(tmp_path / "cache")


def test_a_damaged_graph_names_its_cure(folder: Path) -> None:
    stamp = find_checkpoint(folder).stamp
    (folder / "image_encoder.onnx").write_bytes(b"rubbish" + stamp.encode())
    with pytest.raises(RefsegError, match=r"image_encoder\.onnx is damaged; delete it"):
        load(folder, device="cpu")


def test_what_the_tracer_does_not_know_names_another_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*_: object) -> None:
        raise NotImplementedError("an operator\nand much more")

    monkeypatch.setattr("refseg.engines.tracing.trace", trace)
    named = r'cannot be written as graphs \(an operator\); PyTorch computes it with engine="torch"'
    with pytest.raises(RefsegError, match=named):
        write_graphs(find_checkpoint(folder), folder)
    expected = load(folder, device="cpu")(PHOTO, "the dog").mask
    for name in GRAPHS:
        (folder / name).unlink()
    with pytest.raises(RefsegError, match=named):
        load(folder, device="cpu", engine="onnx")
    segmenter = load(folder, device="cpu")
    assert isinstance(segmenter.engine, TorchEngine)
    np.testing.assert_array_equal(segmenter(PHOTO, "the dog").mask, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": "concat", "aggregation": "sum"},
        {"aggregation": "convlstm", "position": False},
        {"aggregation": "conv3d", "fusion_layers": 2},
        {"aggregation": "mgate"},
        {"aggregation": "tgfe"},
        {"aggregation": "gbfm"},
        {"fusion": "tile", "aggregation": "convlstm-rrn"},
        {"aggregation": "tgfe-cmpc"},
        {"one_hot": True, "aggregation": "gbfm-brinet"},
        {"position_code": "counted", "fusion_norm": False, "mask_side": 32, "align_corners": True, "image_norm": True},
        {"backbone_config": {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8] * 4, "embedding_size": 8}},
        {"backbone_config": {"model_type": "picodet"}},
        {"backbone_config": {"model_type": "nanodet_plus"}, "image_size": 96, "grid": 5},
    ],
    ids=lambda changes: " ".join(str(value)[:40] for value in changes.values()),
)
def test_every_network_answers_for_any_number_of_words(changes: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = SHNet(tiny_config(vocabulary=16, **changes)).eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, mode="fan_in")
    network.save_pretrained(tmp_path)
    WordTokenizer.from_expressions([]).save_pretrained(tmp_path)
    engine, plain = OnnxEngine.of(find_checkpoint(tmp_path), 1), TorchEngine(network)
    side = network.config.image_size
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    features, expected = engine.encode(image), plain.encode(image)
    for length in (1, 2, 5, 25):
        ids = np.arange(length)[None] % 14 + 2
        tokens = Tokens(ids, np.ones_like(ids, dtype=np.bool_), [()], [False])
        found, wanted = (each.answer(tokens, f).mask_logits for each, f in ((engine, features), (plain, expected)))
        assert found.shape == (1, 1, network.config.output_side, network.config.output_side)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
