import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from processes import torchrun
from safetensors.torch import load_file
from small_run import MODEL, PER_PHOTO, SCENES, train, write_recipe

import refseg
from refseg.data.sources import load_rows
from refseg.data.table import write_table
from refseg.errors import RefsegError
from refseg.evaluation.evaluate import evaluate
from refseg.evaluation.protocols import SHNET
from refseg.models.interface import Prediction
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.training.losses import mask_loss
from refseg.training.recipe import Phase, TrainingRecipe
from refseg.training.trainer import Trainee
from refseg.words import FREQUENT


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def by_torch(folder):
    """What was trained, loaded without writing its graphs."""
    return refseg.load(folder, device="cpu", engine="torch")


def overall_iou(folder, rows):
    return evaluate(by_torch(folder), rows).overall.overall_iou


def test_a_network_learns_its_photographs_by_their_sentences(tmp_path):
    """Six scenes by heart. The untrained network, or the trained one asked in unknown words, cannot pass."""
    recipe = write_recipe(tmp_path, steps=200)
    folder = train(recipe)
    state = json.loads((folder / "checkpoint-200" / "trainer_state.json").read_text())
    lines = [entry for entry in state["log_history"] if "loss" in entry]
    losses = [entry["loss"] for entry in lines]
    # Loader and network share one process here, so a part of the time is spent waiting, and not all of it.
    assert all(0 < entry["waiting"] < 1 for entry in lines)
    untrained = train(recipe, "training.max_steps=1", f"training.output={tmp_path / 'untrained'}")
    rows = load_rows(SCENES, per_photo=PER_PHOTO)
    found = overall_iou(folder, rows)
    before = overall_iou(untrained, rows)
    wordless = overall_iou(folder, [dataclasses.replace(row, expression="qwertz") for row in rows])
    summary = (
        f"loss {losses[0]:.2f} → {losses[-1]:.2f}; IoU {found:.2f}, untrained {before:.2f}, wordless {wordless:.2f}"
    )
    logging.getLogger(__name__).info(summary)
    assert losses[-1] < 0.6 * losses[0], summary
    assert before < 0.3 and wordless < 0.3 and found > 0.5, summary


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A recipe with everything random in it, and its run of six steps with checkpoints at 3 and 6."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("straight"),
        steps=6,
        model={"dropout": 0.2},
        data={"mirror": 0.5, "crop": 0.5, "jitter": 0.2, "word_dropout": 0.3},
        training={"save_steps": 3},
    )
    return recipe, train(recipe)


def test_a_resumed_run_ends_with_the_same_bits(straight, tmp_path):
    recipe, folder = straight
    shutil.copytree(folder / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    resumed = train(recipe, f"training.output={tmp_path / 'run'}", resume=True)
    expected, got = (load_file(f / "model.safetensors") for f in (folder, resumed))
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    early = load_file(folder / "checkpoint-3" / "model.safetensors")
    assert any(not torch.equal(early[name], got[name]) for name in got)


def test_a_run_that_ends_early_can_be_resumed_to_its_end(straight, tmp_path):
    recipe, folder = straight
    output = f"training.output={tmp_path / 'run'}"
    early = train(recipe, output, "training.max_steps=3")
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        assert (early / "checkpoint-3" / name).read_bytes() == (folder / "checkpoint-3" / name).read_bytes(), name
    assert (early / "model.safetensors").read_bytes() == (folder / "checkpoint-3/model.safetensors").read_bytes()
    resumed = train(recipe, output, resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_finished_run_resumes_to_itself(straight, tmp_path):
    recipe, folder = straight
    shutil.copytree(folder / "checkpoint-6", tmp_path / "run" / "checkpoint-6")
    resumed = train(recipe, f"training.output={tmp_path / 'run'}", resume=True)
    expected, got = (load_file(f / "model.safetensors") for f in (folder, resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_every_checkpoint_of_a_run_is_a_model(straight):
    _, folder = straight
    rows = load_rows(SCENES, per_photo=2)
    finished, early = by_torch(folder), by_torch(folder / "checkpoint-3")
    assert early.tokenizer.vocabulary == finished.tokenizer.vocabulary
    assert 0 <= overall_iou(folder / "checkpoint-3", rows) <= 1
    last = load_file(folder / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(folder / "model.safetensors").items())


def validated(tmp_path, monkeypatch, scores, steps, training=(), **validation):
    """A run whose readings find these scores, one after the other; its folder, its last state and its readings."""
    import refseg.training.trainer

    asked = []

    def read(segmenter, rows, **options):
        asked.append((not segmenter.engine.network.training, len({row.image for row in rows}), options))
        score = scores[len(asked) - 1]
        return SimpleNamespace(overall=SimpleNamespace(mean_iou=score, overall_iou=1 - score))

    monkeypatch.setattr(refseg.training.trainer, "answer_and_score", read)
    recipe = write_recipe(
        tmp_path,
        steps=steps,
        data={"val": ["scenes:2:1"]},
        training={"save_steps": 3, "warmup_steps": 0, "validation": {"every": 2, **validation}, **dict(training)},
    )
    folder = train(recipe)
    *_, last = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return folder, json.loads((last / "trainer_state.json").read_text()), asked


def test_the_best_reading_becomes_the_model(tmp_path, monkeypatch):
    folder, state, asked = validated(tmp_path, monkeypatch, [0.1, 0.5, 0.2, 0.3, 0.4], 9, protocol="lavt", photos=1)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6", "checkpoint-9"}
    best, last = (load_file(folder / f"checkpoint-{step}" / "model.safetensors") for step in (4, 9))
    finished = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in finished.items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in finished.items())
    lines = {line["step"]: line["eval_mean_iou"] for line in state["log_history"] if "eval_mean_iou" in line}
    assert lines == {2: 0.1, 4: 0.5, 6: 0.2, 8: 0.3} | ({9: 0.4} if 9 in lines else {}) and len(asked) == 5, (
        "the end is read as well"
    )
    for evaluates, photographs, options in asked:
        assert evaluates and photographs == 2
        assert (options["protocol"].name, options["max_photos"], options["share"]) == ("lavt", 1, False)


def test_the_end_may_be_the_best(tmp_path, monkeypatch):
    folder, _, _ = validated(tmp_path, monkeypatch, [0.1, 0.9], 3)
    last = load_file(folder / "checkpoint-3" / "model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in load_file(folder / "model.safetensors").items())


def test_a_run_without_gain_ends(tmp_path, monkeypatch):
    """By overall IoU the readings are 0.5, 0.4, 0.3: the second after the best is one too many."""
    scores = [0.5, 0.6, 0.7, 0.1]
    folder, state, asked = validated(tmp_path, monkeypatch, scores, 12, patience=2, measure="overall_iou")
    assert len(asked) == 3 and state["best_global_step"] == 2
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3", "checkpoint-6"}
    assert (folder / "model.safetensors").read_bytes() == (folder / "checkpoint-2" / "model.safetensors").read_bytes()


def test_the_rate_falls_where_readings_stay(tmp_path, monkeypatch):
    """The best reading is the second; the third after it that is no better divides the rate by ten."""
    values = {"schedule": "plateau", "log_steps": 1, "learning_rate": 1e-3, "backbone_learning_rate": 1e-3}
    scores = [0.1, 0.5, 0.5, 0.4, 0.4, 0.3, 0.2]
    _, state, _ = validated(tmp_path, monkeypatch, scores, 7, values, every=1)
    rates = [line["learning_rate"] for line in state["log_history"] if "learning_rate" in line]
    assert rates == pytest.approx([1e-3] * 5 + [1e-4] * 2)


@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_spares_vectors_unless_told_not_to(tmp_path, everything):
    values = {"weight_decay": 0.25, "decay_vectors": everything}
    folder = train(write_recipe(tmp_path, steps=1, training=values))
    groups = torch.load(folder / "checkpoint-1" / "optimizer.pt", weights_only=True)["param_groups"]
    assert {group["weight_decay"] for group in groups} == ({0.25} if everything else {0.0, 0.25})


def test_readings_change_nothing_in_the_training(straight, tmp_path):
    """The run of `straight` once more, with real readings under another protocol."""
    recipe, folder = straight
    validation = "training.validation={every: 4, protocol: shnet, photos: 2}"
    read = train(recipe, validation, "data.val=[scenes:3:1]", f"training.output={tmp_path / 'run'}")
    for name in ("model.safetensors", "optimizer.pt"):
        assert (read / "checkpoint-6" / name).read_bytes() == (folder / "checkpoint-6" / name).read_bytes()
    with pytest.raises(RefsegError, match="no protocol 'lavd'; one of"):
        values = ["training.validation={every: 4, protocol: lavd}", "data.val=[scenes:3:1]"]
        train(recipe, *values, f"training.output={tmp_path / 'other'}")


def test_trackers(tmp_path):
    quiet = train(write_recipe(tmp_path / "quiet", steps=1, training={"report_to": []}))
    assert not list(quiet.rglob("events.*"))
    with pytest.raises(RefsegError, match=r"report_to: nobody is not installed.*tensorboard"):
        train(write_recipe(tmp_path / "none", steps=1, training={"report_to": ["nobody"]}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_float16_without_a_gpu_is_float32(tmp_path, caplog):
    plain = train(write_recipe(tmp_path / "plain", steps=1))
    with caplog.at_level(logging.WARNING):
        half = train(write_recipe(tmp_path / "half", steps=1, training={"fp16": True}))
    assert "float16 needs a GPU" in caplog.text
    assert (half / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_run_goes_on_from_a_trained_model(straight, tmp_path):
    """At a rate of next to nothing the answers stay; the words stay under their ids and new ones join."""
    _, folder = straight
    (tmp_path / "more.txt").write_text("the zebra\n" * FREQUENT)
    still = {"learning_rate": 1e-12, "backbone_learning_rate": 1e-12, "weight_decay": 0.0}
    recipe = write_recipe(tmp_path, steps=1, training=still)
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"model": {}, "start": str(folder)}))
    before = by_torch(folder)
    went_on = by_torch(train(recipe, f"sentences=[{tmp_path / 'more.txt'}]"))
    words, more = before.tokenizer.vocabulary, went_on.tokenizer.vocabulary
    assert words.items() <= more.items() and "zebra" in more and "zebra" not in words
    old, new = (s.engine.network.text_encoder.embedding.weight for s in (before, went_on))
    torch.testing.assert_close(new[: len(old)], old)
    torch.testing.assert_close(new[more["zebra"]], old[before.tokenizer.unknown_id])
    torch.testing.assert_close(went_on.engine.network.decoder.head.weight, before.engine.network.decoder.head.weight)
    with pytest.raises(RefsegError, match="leave sizes out of model"):
        train(recipe, "model.width=16", f"training.output={tmp_path / 'other'}")
    with pytest.raises(RefsegError, match="leave out one of start and backbone_weights"):
        train(recipe, "backbone_weights=somewhere")


def test_a_share_of_the_start_stays_in_the_weights(straight, tmp_path):
    _, folder = straight
    ends = []
    for share in (0.0, 0.25):
        recipe = write_recipe(tmp_path / str(share), steps=2, training={"warmup_steps": 0})
        recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"model": {}, "start": str(folder)}))
        ends.append(load_file(train(recipe, f"start_share={share}") / "model.safetensors"))
    plain, shared = ends
    start = load_file(folder / "model.safetensors")
    floating = [name for name in start if start[name].is_floating_point()]
    assert max((plain[name] - start[name]).abs().max() for name in floating) > 1e-3
    for name in floating:
        torch.testing.assert_close(shared[name], 0.75 * plain[name] + 0.25 * start[name])
    with pytest.raises(RefsegError, match=r"start_share .* needs a start"):
        train(write_recipe(tmp_path / "none", steps=1), "start_share=0.5")


def test_a_run_is_not_overwritten(straight):
    recipe, _ = straight
    with pytest.raises(RefsegError, match=r"already holds a run; add --resume, or --training\.output"):
        train(recipe)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RefsegError, match="holds no checkpoint to resume; start without --resume"):
        train(write_recipe(tmp_path, steps=1), resume=True)


def test_an_output_that_is_a_file(tmp_path):
    recipe = write_recipe(tmp_path, steps=1)
    with pytest.raises(RefsegError, match="is a file; name a folder"):
        train(recipe, f"training.output={recipe}")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    import refseg.training.trainer

    calls = []

    def broken(logits, targets, dice_weight):
        calls.append(1)
        return logits.mean() * (torch.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(refseg.training.trainer, "mask_loss", broken)
    with pytest.raises(RefsegError, match="the loss is nan at step 2; lower the learning rate"):
        train(write_recipe(tmp_path, steps=5, training={"alignment_weight": 0.0}))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("freeze", [True, False])
def test_the_backbone_starts_from_a_checkpoint_and_moves_only_when_free(tmp_path, freeze):
    from transformers import ConvNextConfig, ConvNextModel

    settings = {key: value for key, value in MODEL["backbone_config"].items() if key != "model_type"}
    torch.manual_seed(3)
    ConvNextModel(ConvNextConfig(**settings)).save_pretrained(tmp_path / "trained")
    recipe = write_recipe(tmp_path, steps=1, model={"freeze_backbone": freeze}, training={"warmup_steps": 0})
    folder = train(recipe, f"backbone_weights={tmp_path / 'trained'}")
    start = load_file(tmp_path / "trained" / "model.safetensors")
    end = load_file(folder / "model.safetensors")
    name = "embeddings.patch_embeddings.weight"
    moved = (end[f"image_encoder.backbone.net.{name}"] - start[name]).abs().max()
    assert moved == 0 if freeze else 0 < moved < 0.01


def test_backbone_weights_that_do_not_fit(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    recipe = write_recipe(tmp_path, steps=1)
    with pytest.raises(RefsegError, match=r"backbone_weights: .* cannot be read"):
        train(recipe, f"backbone_weights={tmp_path}")
    other = ResNetConfig(embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1])
    ResNetModel(other).save_pretrained(tmp_path / "other")
    with pytest.raises(RefsegError, match=r"backbone_weights: .* does not fit the backbone; it lacks"):
        train(recipe, f"backbone_weights={tmp_path / 'other'}")


def test_sentences_and_vectors_start_the_words(tmp_path):
    (tmp_path / "more.txt").write_text("a quokka here\n" * FREQUENT)
    (tmp_path / "glove.txt").write_text("quokka " + " ".join(["0.5"] * 16) + "\n")
    recipe = write_recipe(tmp_path, steps=1, training={"learning_rate": 1e-9})
    folder = train(recipe, f"sentences={tmp_path / 'more.txt'}", f"word_vectors={tmp_path / 'glove.txt'}")
    segmenter = by_torch(folder)
    index = segmenter.tokenizer.vocabulary["quokka"]
    vectors = segmenter.engine.network.text_encoder.embedding.weight
    torch.testing.assert_close(vectors[index], torch.full((16,), 0.5), rtol=0, atol=1e-4)
    assert segmenter.engine.network.config.vocabulary == len(segmenter.tokenizer) == len(vectors)
    assert vectors[0].abs().sum() == 0


def test_words_of_the_file_alone_are_understood_while_words_are_frozen(tmp_path):
    """No sentence has "quokka" or "settee"; a run that goes on from the model keeps its words and takes new ones."""
    lines = {"quokka": 0.5, "settee": -0.5, "circle": 0.25}
    numbers = {word: " ".join([str(value)] * 16) for word, value in (lines | {"rug": 0.75}).items()}
    (tmp_path / "few.vec").write_text("".join(f"{word} {numbers[word]}\n" for word in lines))
    (tmp_path / "more.vec").write_text(f"rug {numbers['rug']}\nquokka {numbers['rug']}\n")
    recipe = write_recipe(tmp_path, steps=2, model={"freeze_words": True}, training={"warmup_steps": 0})
    folder = train(recipe, f"word_vectors={tmp_path / 'few.vec'}")
    segmenter = by_torch(folder)
    words, vectors = segmenter.tokenizer.vocabulary, segmenter.engine.network.text_encoder.embedding.weight
    for word, value in lines.items():
        assert torch.equal(vectors[words[word]], torch.full((16,), value))
    torch.testing.assert_close(vectors[words["<unk>"]], torch.full((16,), 0.25 / 3))
    raw = yaml.safe_load(recipe.read_text()) | {"model": {}, "start": str(folder)}
    recipe.write_text(yaml.safe_dump(raw))
    more = by_torch(train(recipe, f"word_vectors={tmp_path / 'more.vec'}", f"training.output={tmp_path / 'more'}"))
    weights = more.engine.network.text_encoder.embedding.weight
    assert torch.equal(weights[: len(vectors)], vectors)
    assert torch.equal(weights[more.tokenizer.vocabulary["rug"]], torch.full((16,), 0.75))


def test_words_as_the_released_code_has_them(tmp_path):
    """Of letters alone, with fixed vectors, zero where there is none; those of the validation are looked up as well."""
    rows = [dataclasses.replace(row, expression="the 2nd quokka") for row in load_rows("scenes:2:7", per_photo=2)]
    write_table(tmp_path / "val.jsonl", rows)
    numbers = " ".join(["0.5"] * 16)
    (tmp_path / "glove.vec").write_text(f"quokka {numbers}\ncircle {numbers}\nsettee {numbers}\n")
    short = [f"training.{name}" for name in ("validation.every=1", "max_steps=1", "warmup_steps=0")]
    recipe = write_recipe(tmp_path, steps=2, model={"freeze_words": True}, data={"val": [str(tmp_path / "val.jsonl")]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refseg.training.word_vectors.MODERATE", 2)  # a file as large as GloVe's own
        vectors = f"word_vectors={tmp_path / 'glove.vec'}"
        segmenter = by_torch(train(recipe, vectors, "tokens=letters", "unknown_vector=zero", *short))
    words, config = segmenter.tokenizer.vocabulary, segmenter.engine.network.config
    assert all(word.isalpha() for word in words if word[0] != "<")
    assert config.word_vectors == "glove.vec" and "settee" not in words
    table = segmenter.engine.network.text_encoder.embedding.weight
    known = {word for word, index in words.items() if table[index].any()}
    assert known == {"quokka", "circle"}
    assert torch.equal(table[words["quokka"]], torch.full((16,), 0.5))


def test_one_hot_words_take_no_vectors(tmp_path):
    (tmp_path / "glove.vec").write_text("circle " + " ".join(["0.5"] * 16) + "\n")
    recipe = write_recipe(tmp_path, steps=1, model={"one_hot": True})
    with pytest.raises(RefsegError, match="leave out one_hot, or word_vectors"):
        train(recipe, f"word_vectors={tmp_path / 'glove.vec'}")
    folder = train(recipe)
    network = by_torch(folder).engine.network
    assert network.text_encoder.lstm.input_size == network.config.vocabulary
    with pytest.raises(RefsegError, match="leave out one_hot, or word_vectors, sentences and start"):
        train(recipe, f"start={folder}", f"training.output={tmp_path / 'more'}")


def test_both_losses_count_the_choice():
    """The alignment's and the network's: the choice adds its weight times its loss, and nothing without rivals."""
    torch.manual_seed(0)
    model = SHNet(SHNetConfig(**MODEL, vocabulary=9))
    left, right = torch.zeros(2, 2, 1, 32, 32)
    left[..., :16], right[..., 16:] = 1, 1
    batch = {
        "images": torch.rand(1, 3, 64, 64),
        "ids": torch.tensor([[2, 3], [4, 5]]),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "photo_of": torch.zeros(2, dtype=torch.long),
        "targets": left,
    }

    def loss(choice, rivals, answered, aligned):
        recipe = TrainingRecipe("", [Phase(1, 1, 1)], choice_weight=choice, alignment_weight=aligned)
        torch.manual_seed(1)
        trainee = Trainee(model, recipe).eval()
        with torch.no_grad():
            return trainee(**batch, rivals=rivals, answered=torch.tensor([answered] * 2))["loss"].item()

    for answered, aligned in ((True, 0.0), (False, 1.0)):
        none, once, twice = (loss(weight, right, answered, aligned) for weight in (0.0, 1.0, 2.0))
        assert once - none > 0.1 and twice - none == pytest.approx(2 * (once - none), rel=1e-3)
        assert loss(2.0, torch.zeros_like(right), answered, aligned) == pytest.approx(none)


def trainee_and_batch(target, auxiliary=(), **recipe):
    """A network that answers with fixed logits on 32×32, and on the way with the `auxiliary` ones."""
    torch.manual_seed(0)
    model = SHNet(SHNetConfig(**MODEL, vocabulary=9))
    logits = torch.randn(2, 1, 32, 32)
    maps = {str(number): torch.randn(2, 1, side, side) for number, side in enumerate(auxiliary)}
    model.answer = lambda features, tokens: Prediction(logits, maps)
    side = {"cells": 32, "half": 32, "full": 64}[target]
    batch = {
        "images": torch.rand(1, 3, 64, 64),
        "ids": torch.tensor([[2, 3], [4, 5]]),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "photo_of": torch.zeros(2, dtype=torch.long),
        "targets": (torch.rand(2, 1, side, side) > 0.7).float(),
        "rivals": torch.zeros(2, 1, side, side),
        "answered": torch.tensor([True, True]),
    }
    return Trainee(model, TrainingRecipe("", [Phase(1, 1, 1)], target=target, **recipe)).eval(), batch, logits, maps


def test_maps_on_the_way_have_a_loss_each(tmp_path):
    """BRINet's come at the size of the answer, CMPC's smaller; each counts with the one weight."""
    trainee, batch, logits, maps = trainee_and_batch("half", [32, 8], auxiliary_weight=0.25, dice_weight=1.0)
    targets = batch["targets"]
    large = F.interpolate(maps["1"], (32, 32), mode="bilinear")
    expected = mask_loss(logits, targets, 1.0) + 0.25 * sum(mask_loss(m, targets, 0.0) for m in (maps["0"], large))
    assert trainee(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_outlines_on_the_way_are_compared_with_the_masks_border(monkeypatch):
    trainee, batch, logits, maps = trainee_and_batch("cells", [16], auxiliary_weight=0.25)
    monkeypatch.setattr(trainee.model, "answer", lambda *_: Prediction(logits, outlines=maps))
    targets = torch.zeros(2, 1, 32, 32)
    targets[:, :, 8:24, 8:24] = 1
    inside = targets.clone()
    inside[:, :, 10:22, 10:22] = 0
    border = F.pad(torch.ones(2, 1, 20, 20), (6, 6, 6, 6)) - targets + inside
    resized = F.interpolate(maps["0"], (32, 32), mode="bilinear")
    expected = mask_loss(logits, targets, 0.0) + 0.25 * mask_loss(resized, border, 0.0)
    assert trainee(**{**batch, "targets": targets})["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_against_a_fine_target_the_logits_are_resized():
    trainee, batch, logits, _ = trainee_and_batch("full", dice_weight=1.0, choice_weight=1.0)
    resized = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    expected = mask_loss(resized, batch["targets"], 1.0)
    assert trainee(**batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_alignment_sees_shares_of_its_own_cells(monkeypatch):
    trainee, batch, *_ = trainee_and_batch("full", alignment_weight=1.0)
    seen = []

    def loss(logits, targets, rivals):
        seen.append((logits, targets))
        return logits.sum()

    monkeypatch.setattr(trainee, "_loss", loss)
    trainee(**batch)
    scores, shares = seen[0]
    assert scores.shape == shares.shape == (2, 1, 8, 8)
    torch.testing.assert_close(shares, batch["targets"].view(2, 1, 8, 8, 8, 8).mean(dim=(3, 5)))


@pytest.mark.parametrize("target", ["cells", "half", "full"])
def test_a_run_against_every_target(tmp_path, target):
    recipe = write_recipe(tmp_path, steps=2, training={"target": target, "save_steps": 1, "choice_weight": 1.0})
    assert 0 <= overall_iou(train(recipe), load_rows(SCENES, per_photo=2)) <= 1


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    reads = {"validation": {"every": 2, "protocol": "shnet"}}
    recipe = write_recipe(tmp_path, steps=3, data={"val": ["scenes:3:1"]}, training=reads)
    torchrun("-m", "refseg", "train", recipe)
    folder = Path(tmp_path / "run")
    state = json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    (score,) = [line["eval_mean_iou"] for line in state["log_history"] if "eval_mean_iou" in line and line["step"] == 2]
    report = evaluate(by_torch(folder / "checkpoint-2"), load_rows("scenes:3:1", per_photo=PER_PHOTO), protocol=SHNET)
    assert score == pytest.approx(report.overall.mean_iou)
    assert 0 <= overall_iou(folder, load_rows(SCENES, per_photo=PER_PHOTO)) <= 1
