"""A network that reads trees, from a table that has them to the scores, where there is no parser."""

import dataclasses
import logging
import sys

import numpy as np
import pytest
import torch
from small_run import MODEL, PER_PHOTO, SCENES, train, write_recipe
from typer.testing import CliRunner

import refseg
from refseg.cli import app
from refseg.data import parses
from refseg.data.expressions.generate import mirror_expression
from refseg.data.parses import all_words, chain
from refseg.data.sources import load_rows
from refseg.data.table import read_table, write_table
from refseg.models.lscm import LSCM
from refseg.training.recipe import Phase, TrainingRecipe
from refseg.training.trainer import Trainee

NETWORK = {
    "model_type": "lscm",
    **{name: MODEL[name] for name in ("backbone_config", "freeze_backbone", "word_size", "image_size", "dropout")},
    **{"grid": 8, "width": 12, "fused_width": 10, "mutan_heads": 2},
}
COMPLAINT = "depends on the one before"


def backwards(expression):
    """A tree that no chain is: every word depends on the one behind."""
    count = len(all_words(expression))
    return tuple(min(word + 1, count - 1) for word in range(count))


@pytest.fixture(scope="module", autouse=True)
def no_parser(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(sys.modules, "spacy", None)
        parses._load.cache_clear()
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "scenes.jsonl"
    rows = load_rows(SCENES, per_photo=PER_PHOTO)
    write_table(path, (dataclasses.replace(row, heads=backwards(row.expression)) for row in rows))
    return path


def run(folder, spec, monkeypatch, **data):
    """The heads that a training of three steps shows to its network, by the ids of their sentences."""
    asked, answer = [], LSCM.answer

    def watched(network, features, tokens):
        asked.append(tokens)
        return answer(network, features, tokens)

    monkeypatch.setattr(LSCM, "answer", watched)
    trained = train(write_recipe(folder, 3, network=NETWORK, data={"train": [str(spec)], **data}))
    monkeypatch.setattr(LSCM, "answer", answer)
    shown = [
        tuple(heads[mask].tolist()) for tokens in asked for heads, mask in zip(tokens.heads, tokens.mask, strict=True)
    ]
    assert shown
    return trained, shown


def test_training_reads_the_trees_of_the_table_mirrored_or_not(table, tmp_path, monkeypatch, caplog):
    rows = read_table(table)
    assert any(mirror_expression(row.expression) != row.expression for row in rows)
    with caplog.at_level(logging.WARNING):
        _, shown = run(tmp_path / "run", table, monkeypatch, mirror=0.5)
    assert all(heads == tuple(min(word + 1, len(heads) - 1) for word in range(len(heads))) for heads in shown)
    assert COMPLAINT not in caplog.text


def test_without_trees_it_reads_chains_and_says_so_once(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        _, shown = run(tmp_path / "run", SCENES, monkeypatch)
    assert all(heads == chain(len(heads)) for heads in shown)
    assert caplog.text.count(COMPLAINT) == 1


def test_evaluation_reads_the_trees_of_the_table(table, tmp_path, monkeypatch, caplog):
    trained, _ = run(tmp_path / "run", table, monkeypatch)
    with caplog.at_level(logging.WARNING):
        result = CliRunner().invoke(app, ["evaluate", str(trained), "--data", str(table), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert COMPLAINT not in caplog.text
    segmenter = refseg.load(trained, device="cpu", engine="torch")
    with caplog.at_level(logging.WARNING):
        answer = segmenter(np.zeros((40, 60, 3), dtype=np.uint8), "the red circle")
    assert answer.mask.shape == (40, 60) and caplog.text.count(COMPLAINT) == 1
    assert segmenter.tokenizer.parse.chains == 1


def test_heads_are_those_of_the_sentences_that_the_whole_network_answers(tmp_path):
    """Of the batch's sentences, some only align; the others keep their own trees."""
    seen = []

    class Watched(LSCM):
        def answer(self, features, tokens):
            seen.append(tokens)
            return super().answer(features, tokens)

    settings = {name: value for name, value in NETWORK.items() if name != "model_type"}
    network = Watched(LSCM.config_class(vocabulary=12, **settings))
    trainee = Trainee(network, TrainingRecipe("", [Phase(1, 1, 1)]))
    ids = torch.tensor([[3, 4, 5], [6, 7, 8], [9, 4, 0]])
    heads = torch.tensor([[0, 0, 1], [2, 2, 2], [1, 1, 0]])
    nothing = torch.zeros(3, 1, 8, 8)
    trainee(
        images=torch.rand(1, 3, 64, 64),
        ids=ids,
        mask=ids > 0,
        photo_of=torch.zeros(3, dtype=torch.long),
        targets=nothing,
        rivals=nothing,
        answered=torch.tensor([True, False, True]),
        heads=heads,
    )
    assert torch.equal(seen[0].heads, heads[[0, 2]])
