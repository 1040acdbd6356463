"""BRINet, LSCM, CMPC and BUSNet: a recipe is the published network and how its authors trained it."""

import pytest

from refseg.models.registry import find_network
from refseg.training.recipe import load_recipe

DATASETS = {
    "unc": ("unc-train", "unc-val"),
    "unc+": ("unc+-train", "unc+-val"),
    "gref-google": ("gref-google-train", "gref-google-val"),
    "referit": ("referit-trainval", "referit-test"),
}
METHODS = {
    "brinet": {"steps": 700_000, "photos": 1, "words": None, "auxiliary": 1.0, "target": "cells"},
    "lscm": {"steps": 700_000, "photos": 1, "words": "glove", "auxiliary": 0.1 / 0.6, "target": "full"},
    "cmpc": {"steps": 700_000, "photos": 1, "words": "glove", "auxiliary": 0.1 / 0.7, "target": "full"},
    "busnet": {"steps": 100_000, "photos": 8, "words": "glove", "auxiliary": None, "target": "full"},
}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_is_the_published_network_and_schedule(method, dataset):
    recipe, expected = load_recipe(f"{dataset}/{method}"), METHODS[method]
    model = dict(recipe.model)
    config_class = find_network(model.pop("model_type")).config_class
    published = config_class.published(letterbox=True, vocabulary=config_class.vocabulary)
    assert config_class(**model).to_dict() == published.to_dict()
    assert recipe.backbone_weights == "weights/deeplab-resnet101-voc"
    assert ("glove" if recipe.word_vectors else None) == expected["words"]
    assert recipe.data.train == [f"{DATASETS[dataset][0]}.jsonl"]
    assert recipe.data.val == [f"{DATASETS[dataset][1]}.jsonl"]
    assert recipe.data.draw == "expressions"
    assert recipe.data.mirror == recipe.data.crop == recipe.data.jitter == recipe.data.word_dropout == 0
    training = recipe.training
    assert training.output == f"runs/{dataset}-{method}"
    (phase,) = training.phases
    assert (training.max_steps or phase.steps, phase.photos, phase.expressions) == (
        expected["steps"],
        expected["photos"],
        1,
    )
    assert (training.learning_rate, training.power, training.target) == (2.5e-4, 0.9, expected["target"])
    if expected["auxiliary"]:
        assert training.auxiliary_weight == pytest.approx(expected["auxiliary"], rel=0.01)
