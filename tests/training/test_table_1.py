"""The methods that table 1 compares SHNet with: a recipe per dataset, whose header has the row's numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from refseg.models.registry import NETWORKS, find_network
from refseg.training.recipe import RECIPES, find_recipe, load_recipe

ROOT = Path(__file__).parents[2]
SPLITS = {
    "unc": ("UNC", "train", ["val", "testA", "testB"]),
    "unc+": ("UNC+", "train", ["val", "testA", "testB"]),
    "gref-google": ("G-Ref", "train", ["val"]),
    "referit": ("ReferIt", "trainval", ["test"]),
}
TABLE_1 = {
    "rrn": "55.33 57.26 53.95 | 39.75 42.15 36.11 | 36.45 | 63.63",
    "cmsa": "58.32 60.61 55.09 | 43.76 47.60 37.89 | 39.98 | 63.80",
    "step": "60.04 63.46 57.97 | 48.19 52.33 40.41 | 46.40 | 64.13",
    "brinet": "61.35 63.37 59.57 | 48.57 52.87 42.13 | 48.04 | 63.46",
    "lscm": "61.47 64.99 59.55 | 49.34 53.12 43.50 | 48.05 | 66.57",
    "cmpc": "61.36 64.53 59.64 | 49.56 53.44 43.23 | 49.05 | 65.53",
    "busnet": "62.56 65.61 60.38 | 50.98 56.14 43.51 | 49.98 | -",
    "efn": "62.76 65.69 59.67 | 51.50 55.24 43.01 | 51.93 | 66.70",
}
"""Overall IoU in %, in the order of SPLITS; BUSNet has none on ReferIt."""
ROWS = {
    f"{dataset}/{method}": numbers.replace("-", "").split()
    for method, row in TABLE_1.items()
    for dataset, numbers in zip(SPLITS, row.split(" | "), strict=True)
}
WITHOUT_CRF, WITHOUT_CODE = ("busnet", "efn"), ("busnet", "step")
DECIDED: dict[str, dict[str, Any]] = {
    "rrn": {"max_steps": 700_000},
    "cmsa": {},
    "step": {"max_steps": 700_000, "auxiliary_weight": 1.0},
    "efn": {"learning_rate": 1e-4, "weight_decay": 5e-4, "auxiliary_weight": 1.0},
}
"""How the other training values differ from those of `unc/cmsa`."""


def header(name: str) -> str:
    text = find_recipe(name).read_text(encoding="utf-8")
    return " ".join(" ".join(line[1:].split()) for line in text.splitlines() if line[0] == "#")


def test_every_method_has_a_row_and_every_row_a_recipe() -> None:
    ours = {name for name, place in NETWORKS.items() if place.startswith("refseg.")}
    assert set(TABLE_1) == ours - {"shnet"}
    found = {f"{path.parent.name}/{path.stem}" for path in RECIPES.glob("*/*.yaml") if path.stem in TABLE_1}
    assert found == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_header_has_the_numbers_of_table_1(name: str) -> None:
    dataset, _, method = name.partition("/")
    label, train, splits = SPLITS[dataset]
    told = header(name)
    places = [told.index(f" {heading} ") for heading in ("data", "hardware", "expected", "protocol", "command")]
    assert places == sorted(places)
    expected = told[places[2] : places[3]]
    assert re.findall(r"\d\d\.\d\d", expected) == ROWS[name]
    assert not ROWS[name] or f"overall IoU on {label} {' / '.join(splits)}" in expected
    assert ("after a dense CRF" in expected) is (method not in WITHOUT_CRF)
    assert ("from the paper's text" in expected) is (method in WITHOUT_CODE)
    assert f"refseg train {name} " in told and f"{dataset}-{train}.jsonl" in told
    crf = "" if method in WITHOUT_CRF else " --crf"
    for split in splits:
        scored = f"refseg evaluate runs/{dataset}-{method} --data {dataset}-{split}.jsonl --protocol native{crf}"
        assert f"{scored} " in f"{told} "


@pytest.mark.parametrize("name", [name for name in ROWS if name.partition("/")[2] in DECIDED])
def test_a_recipe_is_the_published_network_on_its_data(name: str) -> None:
    dataset, _, method = name.partition("/")
    _, train, splits = SPLITS[dataset]
    recipe = load_recipe(name)
    config_class: Any = find_network(method).config_class
    published = getattr(config_class, "published", None) or config_class.paper
    settings = {key: value for key, value in recipe.model.items() if key != "model_type"}
    assert recipe.model["model_type"] == method
    assert config_class(**settings, vocabulary=99).to_dict() == published(vocabulary=99).to_dict()
    assert (recipe.data.train, recipe.data.val) == ([f"{dataset}-{train}.jsonl"], [f"{dataset}-{splits[0]}.jsonl"])
    assert recipe.training.output == f"runs/{dataset}-{method}"
    assert recipe.word_vectors == ("glove.840B.300d.txt" if method == "step" else None)
    assert recipe.backbone_weights == ("microsoft/resnet-101" if method == "efn" else "weights/deeplab-resnet101-voc")


@pytest.mark.parametrize("method", DECIDED)
def test_a_recipe_trains_as_its_authors_did(method: str) -> None:
    training, shared = load_recipe(f"unc/{method}").training, load_recipe("unc/cmsa").training
    for name in ("max_steps", "learning_rate", "weight_decay", "auxiliary_weight", "power", "target", "max_grad_norm"):
        assert getattr(training, name) == DECIDED[method].get(name, getattr(shared, name)), name
    (phase,) = training.phases
    steps, photos = (200_000, 8) if method == "efn" else (800_000, 1)
    assert (phase.steps, phase.photos, phase.expressions) == (steps, photos, 1)


def test_the_documentation_has_table_1() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for method, row in TABLE_1.items():
        (line,) = (line for line in page.splitlines() if line.startswith("|") and f"| `{method}` |" in line)
        assert re.findall(r"\d\d\.\d\d", line) == re.findall(r"\d\d\.\d\d", row)
        assert ("from the paper's text" in line) is (method in WITHOUT_CODE)
        assert line.endswith("| no |" if method in WITHOUT_CRF else "| yes |")
