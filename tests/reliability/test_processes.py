"""Several processes do what one would."""

import json

import pytest
import torch
from processes import python, torchrun
from small_run import write_recipe

from refseg.training.batches import Collate, Sample
from refseg.words import WordTokenizer

ONE_STEP = """
import sys
from pathlib import Path
from torch import nn
from refseg.training.trainer import Trainee
from refseg.training.run import run


def train(self, mode=True):
    nn.Module.train(self, mode)
    for module in self.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return self


Trainee.train = train
run(Path(sys.argv[1]), sys.argv[2:])
"""


@pytest.mark.slow
def test_a_step_on_two_processes_or_of_two_batches_is_the_step_on_one_with_twice_the_photographs(tmp_path):
    """Where batch norm keeps its statistics: else each process normalises by its own half of the photographs."""
    data = {"mirror": 0.5, "crop": 0.0, "jitter": 0.2, "word_dropout": 0.3}
    recipe = write_recipe(tmp_path, steps=1, data=data, training={"warmup_steps": 0, "log_steps": 1})
    program = tmp_path / "one_step.py"
    program.write_text(ONE_STEP)
    gradients, lines = [], []
    for name, start, photos, accumulate in (("one", python, 4, 1), ("two", torchrun, 2, 1), ("in turn", python, 2, 2)):
        phases = f"training.phases=[{{steps: 1, photos: {photos}, expressions: 2, aligned: 6}}]"
        values = [phases, f"training.accumulate={accumulate}", f"training.output={tmp_path / name}"]
        start(program, recipe, *values, REFSEG_CACHE=str(tmp_path))
        checkpoint = tmp_path / name / "checkpoint-1"
        # After its first step, AdamW's running mean is the gradient, times 1 - β₁ = 0.1.
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        gradients.append(torch.cat([state[number]["exp_avg"].flatten() for number in sorted(state)]) * 10)
        lines.append(json.loads((checkpoint / "trainer_state.json").read_text())["log_history"][0])
    assert 0.5 < gradients[0].norm() < 1.01, "there is a gradient, clipped to 1"
    for gradient, line in zip(gradients[1:], lines[1:], strict=True):
        torch.testing.assert_close(gradient, gradients[0], atol=1e-6, rtol=0)
        assert line["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
        assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_the_command_scores_the_same_on_two_processes(tiny_model, tmp_path):
    command = ["-m", "refseg", "evaluate", tiny_model, "--data", "scenes:5:3", "--json", "--device", "cpu"]
    alone, shared = (json.loads(start(*command, REFSEG_CACHE=str(tmp_path))) for start in (python, torchrun))
    assert alone == shared and alone


def test_words_are_dropped_alike_however_the_samples_are_batched():
    tokenizer = WordTokenizer.from_expressions(["the red bag on the left of the man"])
    texts = [["the red bag", "the bag"], ["the red bag on the left of the man"]]
    samples = [
        Sample(torch.zeros(3, 4, 4), text, *[torch.zeros(len(text), 1, 4, 4)] * 2, 1, seed)
        for seed, text in enumerate(texts)
    ]
    collate = Collate(tokenizer, 0.5)
    together, apart = collate(samples)["ids"], [collate([sample])["ids"] for sample in samples]
    for rows, alone in zip(together.split([2, 1]), apart, strict=True):
        assert torch.equal(rows[:, : alone.shape[1]], alone) and not rows[:, alone.shape[1] :].any()
    assert 0 < (together == tokenizer.unknown_id).sum() < (together != 0).sum()
