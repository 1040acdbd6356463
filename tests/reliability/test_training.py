"""A run survives what happens to it: a kill, a full disk, a damaged photograph, numbers that are not finite."""

import dataclasses
import json
import logging
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_run import train, write_recipe
from tiny import tiny_config

from refseg.data.sources import load_rows
from refseg.data.table import by_photograph
from refseg.errors import RefsegError
from refseg.training.batches import PhotoDataset, PhotoSampler
from refseg.training.recipe import DataRecipe, Phase, TrainingRecipe
from refseg.training.trainer import Batches

ROOT = Path(__file__).parents[2]
STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A recipe with everything random in it, and its run of four steps with checkpoints at 2 and 4."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("undisturbed"),
        steps=4,
        model={"dropout": 0.2},
        data={"mirror": 0.5, "crop": 0.5, "jitter": 0.2, "word_dropout": 0.3, "absent": 0.3},
        training={"save_steps": 2, "log_steps": 1, "warmup_steps": 0},
    )
    return recipe, train(recipe)


@pytest.fixture
def halfway(undisturbed, tmp_path):
    """The override that names a folder with the run's first checkpoint alone."""
    shutil.copytree(undisturbed[1] / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    return f"training.output={tmp_path / 'run'}"


class Killed(BaseException):
    """As a kill, nothing in the code under test catches it."""


def half_an_optimizer(monkeypatch):
    def save(_, path):
        Path(path).write_bytes(b"PK half of it")
        raise Killed

    monkeypatch.setattr(torch, "save", save)


def all_but_the_name(monkeypatch):
    def rename(*_):
        raise Killed

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize(("moment", "workers"), [(half_an_optimizer, 0), (all_but_the_name, 2)])
def test_a_kill_while_a_checkpoint_is_written_changes_no_bit(undisturbed, halfway, tmp_path, moment, workers):
    recipe, folder = undisturbed
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        moment(patch)
        train(recipe, halfway, resume=True)
    assert (tmp_path / "run" / "unfinished" / "checkpoint-4" / "model.safetensors").exists()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = train(recipe, halfway, f"training.workers={workers}", resume=True)
    for name in ("model.safetensors", *(f"checkpoint-4/{name}" for name in STATE)):
        assert (resumed / name).read_bytes() == (folder / name).read_bytes(), name
    assert losses(resumed) == losses(folder) and len(losses(folder)) == 4
    assert not (resumed / "unfinished").exists()


def losses(folder):
    history = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [line["loss"] for line in history if "loss" in line]


def test_a_full_disk_stops_the_run_and_leaves_its_last_checkpoint(undisturbed, halfway, tmp_path):
    """The limit of a file's size stands in for the disk's end; both reach the writers as a failing write."""
    recipe, folder = undisturbed
    assert (folder / "model.safetensors").stat().st_size > 50_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(RefsegError, match=r"unfinished cannot be written \(.+\); make room") as stopped:
            train(recipe, halfway, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(stopped.value).splitlines()) == 1
    kept = tmp_path / "run" / "checkpoint-2"
    assert list((tmp_path / "run").glob("checkpoint-*")) == [kept]
    assert all((kept / name).read_bytes() == (folder / "checkpoint-2" / name).read_bytes() for name in STATE)


def test_weights_that_are_no_numbers_become_no_checkpoint(tmp_path, monkeypatch):
    """A finite loss may have a gradient that is not; the loss of the step after tells too late."""
    import refseg.training.trainer

    calls = []

    def broken(logits, targets, dice_weight):
        calls.append(1)
        return logits.square().mean() + (
            0.0 * (logits - logits.detach()).abs().sqrt().sum() if len(calls) == 4 else 0.0
        )

    monkeypatch.setattr(refseg.training.trainer, "mask_loss", broken)
    recipe = write_recipe(tmp_path, steps=5, training={"alignment_weight": 0.0, "save_steps": 1, "warmup_steps": 0})
    with pytest.raises(RefsegError, match="the weights are not finite at step 4; lower the learning rate"):
        train(recipe)
    assert {path.name for path in (tmp_path / "run").glob("*-*")} == {"checkpoint-2", "checkpoint-3"}


@pytest.mark.parametrize("workers", [0, 1])
def test_one_damaged_photograph_is_passed_over_and_two_in_a_row_stop(tmp_path, caplog, workers):
    photos = list(by_photograph(load_rows("scenes:6", per_photo=4)))

    def damage(number):
        path = tmp_path / f"{number}.png"
        path.write_bytes(photos[number][0].image.read_bytes()[:100])
        photos[number] = [dataclasses.replace(row, image=path) for row in photos[number]]

    def shown():
        training = TrainingRecipe("", [Phase(6, 1, 2)])
        data = PhotoDataset(photos, DataRecipe([]), training, tiny_config())
        sampler = PhotoSampler(data.parts, training, range(6))
        return list(Batches(data, batch_sampler=sampler, num_workers=workers, collate_fn=list))

    damage(2)
    with caplog.at_level(logging.WARNING):
        assert len(shown()) == 6
    assert workers or (caplog.text.count("skipped") == 1 and "2.png" in caplog.text)
    damage(3)
    with pytest.raises(RefsegError, match=r"^[^\n]*3\.png[^\n]*;[^\n]*$"):
        shown()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments(workers):
    command = [sys.executable, ROOT / "benchmarks" / "kill.py", "--kills", "6", "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["kills"] == 6
