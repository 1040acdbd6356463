"""Every row of the paper's tables is a recipe, and differs from shnet.yaml in what its row says and in nothing else."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from refseg.models.shnet import SHNetConfig
from refseg.training.recipe import RECIPES as RECIPE_FOLDER
from refseg.training.recipe import Phase, diff_recipes, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = {
    f"{path.parent.name}/{path.stem}": path
    for path in sorted(RECIPE_FOLDER.glob("*/[!_]*.yaml"))
    if path.parent.name != "tables" and "model_type" not in load_recipe(path).model
}
"""Those of SHNet."""
LARGE = {"model.image_size": 448}
RESNET = {"model.output_stride": None, "backbone_weights": "microsoft/resnet-101"}


def on(train, val, steps):
    phases = [asdict(Phase(steps, photos=50, expressions=1))]
    return {"data.train": [f"{train}.jsonl"], "data.val": [f"{val}.jsonl"], "training.phases": phases}


UNC_PLUS, GREF, REFERIT = (
    on("unc+-train", "unc+-val", 96150),
    on("gref-google-train", "gref-google-val", 68400),
    on("referit-trainval", "referit-test", 48000),
)
RELEASED = {
    "tokens": "letters",
    "unknown_vector": "zero",
    "model.max_words": 30,
    "model.freeze_words": True,
    "model.embedding_dropout": 0.0,
    "model.fusion_norm": False,
    "model.attention_dropout": 0.2,
    "model.position_code": "counted",
    "model.conv_bias": True,
    "model.aspp_dropout": 0.25,
    "model.image_norm": True,
    "model.decoder_widths": [512, 512, 512, 256],
    "model.decoder_dropout": 0.2,
    "model.align_corners": True,
    "model.mask_side": 160,
    "model.threshold": 0.4,
    "data.greyscale": 0.3,
    "training.phases": on("", "", 72390)["training.phases"],
    "training.schedule": "plateau",
    "training.decay_vectors": True,
    "training.target": "dilated",
    "training.validation.every": 2413,
    "training.validation.protocol": "shnet",
    "training.validation.measure": "overall_iou",
    "training.validation.patience": 6,
}
ROWS = {
    "unc/shnet": ({}, "63.98 67.51 60.48 75.18"),
    "unc/shnet-released": (RELEASED, "63.98 67.51 60.48"),
    "unc/shnet-448": (LARGE, "65.32 68.56 62.04 65.29"),
    "unc/baseline": ({"model.fusion": "tile", "model.aggregation": "sum"}, "54.70 61.47"),
    "unc/only-hcam": ({"model.fusion": "tile"}, "59.53 68.44"),
    "unc/only-sfm": ({"model.aggregation": "sum"}, "62.16 72.56"),
    "unc/sfm-convlstm": ({"model.aggregation": "convlstm-rrn"}, "63.30 74.34"),
    "unc/sfm-conv3d": ({"model.aggregation": "conv3d"}, "63.16 74.07"),
    "unc/without-glove": ({"word_vectors": None, "model.one_hot": True}, "62.19 74.23"),
    "unc/learnt-words": ({"word_vectors": None}, ""),
    "unc/without-position": ({"model.position": False}, "63.07 74.0"),
    "unc/mgate": ({"model.aggregation": "mgate"}, "62.59"),
    "unc/tgfe": ({"model.aggregation": "tgfe"}, "62.94"),
    "unc/gbfm": ({"model.aggregation": "gbfm"}, "62.72"),
    "unc/mgate-cmsa": ({"model.aggregation": "mgate-cmsa"}, ""),
    "unc/tgfe-cmpc": ({"model.aggregation": "tgfe-cmpc"}, ""),
    "unc/gbfm-brinet": ({"model.aggregation": "gbfm-brinet"}, ""),
    "unc/mgate-448": ({"model.aggregation": "mgate", **LARGE}, "63.35"),
    "unc/tgfe-448": ({"model.aggregation": "tgfe", **LARGE}, "63.72"),
    "unc/gbfm-448": ({"model.aggregation": "gbfm", **LARGE}, "63.83"),
    "unc/resnet101-320": (RESNET, "63.76 67.05 60.15"),
    "unc/resnet101-448": ({**RESNET, **LARGE}, "64.88 68.08 60.82"),
    "unc+/shnet": (UNC_PLUS, "51.79 56.49 43.83"),
    "unc+/shnet-448": ({**UNC_PLUS, **LARGE}, "52.75 58.46 44.12"),
    "gref-google/shnet": (GREF, "48.95"),
    "gref-google/shnet-448": ({**GREF, **LARGE}, "49.90"),
    "referit/shnet": (REFERIT, "68.38"),
    "referit/shnet-448": ({**REFERIT, **LARGE}, "69.19"),
}


def values(name):
    """The recipe's values by dotted key."""
    flat = {}
    for key, value in asdict(load_recipe(RECIPES[name])).items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def header(name):
    return "".join(line[1:] for line in RECIPES[name].read_text(encoding="utf-8").splitlines(True) if line[0] == "#")


def test_every_row_has_its_recipe():
    assert set(RECIPES) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_differs_from_shnet_only_in_what_it_says(name):
    differs = {key: value for key, (_, value) in diff_recipes("unc/shnet", name).items()}
    dataset, _, run = name.partition("/")
    assert differs == ROWS[name][0] | ({} if name == "unc/shnet" else {"training.output": f"runs/{dataset}-{run}"})
    SHNetConfig(**load_recipe(RECIPES[name]).model)


def test_the_released_network_is_the_preset():
    recipe = load_recipe("unc/shnet-released")
    assert SHNetConfig(**recipe.model).to_dict() == SHNetConfig.released(320).to_dict()
    assert recipe.training.validation.every * 50 >= 120_624 > (recipe.training.validation.every - 1) * 50
    assert sum(phase.steps for phase in recipe.training.phases) == 30 * recipe.training.validation.every


def test_shnet_is_the_papers_network_and_schedule():
    recipe = load_recipe(RECIPES["unc/shnet"])
    assert SHNetConfig(**recipe.model).to_dict() == SHNetConfig.paper(320).to_dict()
    training = recipe.training
    assert (training.learning_rate, training.weight_decay, training.power) == (1.2e-4, 9e-5, 0.7)
    assert training.alignment_weight == training.dice_weight == recipe.data.crop == recipe.data.mirror == 0
    (phase,) = training.phases
    assert phase.photos * phase.expressions == 50


@pytest.mark.parametrize("name", ROWS)
def test_a_header_promises_data_hardware_number_protocol_and_commands(name):
    told, own = header(name), values(name)
    for heading in ("data", "hardware", "expected", "protocol", "command"):
        assert re.search(rf"^ {heading} ", told, re.MULTILINE), heading
    assert all(re.search(rf"(?<![\d.]){number}(?![\d.])", told) for number in ROWS[name][1].split())
    assert own["data.train"][0] in told and own["data.val"][0] in told
    assert f"refseg train {name}\n" in told
    assert f"refseg evaluate {own['training.output']} --data {own['data.val'][0]} --protocol shnet" in told
    assert "not measured here" in told


def test_the_documentation_has_every_recipe_with_its_number():
    lines = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines()
    for name, (_, numbers) in ROWS.items():
        rows = " ".join(line for line in lines if line.startswith("|") and f"`{name}.yaml`" in line)
        assert all(re.search(rf"(?<![\d.]){number}(?![\d.])", rows) for number in numbers.split()), name
