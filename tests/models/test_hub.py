"""Checkpoints that travel: the hub's cache, the model card, AutoModel, and files that are not read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import refseg
from refseg.errors import RefsegError
from refseg.evaluation.protocols import NATIVE, Pixels
from refseg.evaluation.report import Report, Scored
from refseg.segmenter import load

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "hub"


def cached(cache: Path, name: str, folder: Path) -> None:
    """Puts a checkpoint where the hub's client would have put it."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


def test_a_cached_model_needs_no_network(tiny_model: Path, offline: Path) -> None:
    cached(offline, "someone/shnet", tiny_model)
    expected = load(tiny_model, device="cpu")(PHOTO, "the dog")
    np.testing.assert_array_equal(load("someone/shnet", device="cpu")(PHOTO, "the dog").mask, expected.mask)


@pytest.mark.parametrize("name", ["someone/shnet", "clipseg", "sam3"])
def test_offline_nothing_is_downloaded(offline: Path, name: str) -> None:
    with pytest.raises(RefsegError, match="HF_HUB_OFFLINE forbids the network; unset it"):
        load(name, device="cpu")


def test_a_name_finds_the_published_model(tiny_model: Path, offline: Path) -> None:
    cached(offline, "CIDAS/clipseg-rd64-refined", tiny_model)  # what lies there is read as what its config says
    assert load("clipseg", device="cpu").settings.model_type == "shnet"


def test_a_gated_model_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not cached")
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(RefsegError, match=r"facebook/sam3 .* accept its licence.* hf auth login"):
        load("sam3", device="cpu")


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "weights.pt"])
def test_pickles_are_refused_unread(tiny_model: Path, tmp_path: Path, pickle: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / pickle)
    with pytest.raises(RefsegError, match=rf"pickle \({pickle}\).* model.safetensors, as save_pretrained does"):
        load(folder, device="cpu")


def test_what_is_saved_is_loaded_again(tiny_model: Path, tmp_path: Path) -> None:
    segmenter = load(tiny_model, device="cpu")
    segmenter.save_pretrained(tmp_path / "mine")
    again = load(tmp_path / "mine", device="cpu")(PHOTO, ["the dog", "zebra"])
    for before, after in zip(segmenter(PHOTO, ["the dog", "zebra"]), again, strict=True):
        np.testing.assert_array_equal(before.mask, after.mask)
        assert before.unknown_words == after.unknown_words


def test_the_card_says_what_is_known_and_no_more(tiny_model: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    segmenter = load(tiny_model, device="cpu")
    segmenter.save_pretrained(tmp_path / "mine", license="cc-by-4.0")
    plain = ModelCard.load(tmp_path / "mine" / "README.md")
    assert plain.data.license == "cc-by-4.0" and plain.data.library_name == "refseg"
    assert plain.data.pipeline_tag == "image-segmentation" and plain.data.eval_results is None
    assert "None measured" in plain.text and "%" not in plain.text
    pixels = [Pixels(1, 2, 3, True), Pixels(1, 1, 1, True)]  # IoU 1/4 and 1
    answers = [Scored(n, "a.jpg", counts, 0.5, 0.1, "val", "category", False) for n, counts in enumerate(pixels)]
    report = Report("mine", "val", NATIVE, 64, 0.5, "0.1.0", answers=answers)
    segmenter.save_pretrained(tmp_path / "mine", report=report)
    told = ModelCard.load(tmp_path / "mine" / "README.md")
    values = {result.metric_type: result.metric_value for result in told.data.eval_results}
    assert values == {"overall_iou": 40.0, "mean_iou": 62.5}
    assert all("native" in result.metric_name for result in told.data.eval_results)
    assert "Protocol native" in told.text and "| all | 2 | 40.0 | 62.5 |" in told.text


def test_uploading_makes_the_repository_and_sends_the_folder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import RepoUrl

    sent: dict[str, object] = {}

    def create(self: object, name: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        sent.update(name=name, private=private)
        return RepoUrl(f"https://huggingface.co/{name}")

    def upload(self: object, *, repo_id: str, folder_path: str) -> None:
        sent["files"] = {file.name for file in Path(folder_path).iterdir()}
        sent["card"] = (Path(folder_path) / "README.md").read_text()
        if repo_id == "someone/full":
            raise OSError("no space")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    segmenter = load(tiny_model, device="cpu")
    assert segmenter.push_to_hub("someone/mine", private=True) == "https://huggingface.co/someone/mine"
    assert (sent["name"], sent["private"]) == ("someone/mine", True)
    assert sent["files"] >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert 'refseg.load("someone/mine")' in str(sent["card"])
    with pytest.raises(RefsegError, match=r"did not take someone/full \(no space\); run hf auth login"):
        segmenter.push_to_hub("someone/full")


def test_automodel_gives_an_shnet(tiny_model: Path) -> None:
    from transformers import AutoConfig, AutoModel

    assert isinstance(AutoConfig.from_pretrained(tiny_model), refseg.SHNetConfig)
    model = AutoModel.from_pretrained(tiny_model)
    assert type(model) is refseg.SHNet
    weights = load(tiny_model, device="cpu", engine="torch").engine.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_automodel_needs_no_import_of_refseg(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own; what is written again from there carries no copy of the package's source."""
    script = """
import sys
from transformers import AutoModel
network = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(network).__module__.startswith("refseg.models"), type(network)
network.save_pretrained(sys.argv[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_model), str(tmp_path / "again")],
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "again").iterdir()}
    assert written == {"config.json", "model.safetensors", "refseg_network.py"}
    shutil.copy(tiny_model / "tokenizer.json", tmp_path / "again")
    first, second = (load(folder, device="cpu")(PHOTO, "the dog") for folder in (tiny_model, tmp_path / "again"))
    np.testing.assert_array_equal(first.mask, second.mask)
