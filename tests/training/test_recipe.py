import dataclasses
from pathlib import Path

import pytest
import yaml

from refseg.errors import RefsegError
from refseg.training.recipe import Phase, diff_recipes, find_recipe, load_recipe, show_recipe

WHOLE = {
    "model": {"width": 16, "backbone_config": {"model_type": "resnet", "depths": [1, 1, 1, 1]}},
    "data": {"train": ["scenes:4"], "mirror": 0},
    "training": {"output": "runs/x", "phases": [{"steps": 5, "photos": 2, "expressions": 3}]},
}


@pytest.fixture
def recipe(tmp_path):
    """Reads WHOLE after changes such as `data={"crop": 1}`, None taking a section away."""

    def read(*overrides, **changes):
        raw = {key: dict(value) for key, value in WHOLE.items()}
        for section, change in changes.items():
            if change is None:
                del raw[section]
            elif isinstance(change, dict):
                raw[section] = {**raw.get(section, {}), **change}
            else:
                raw[section] = change
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return load_recipe(file, overrides)

    return read


def test_values_and_defaults(recipe):
    read = recipe()
    assert read.training.phases == [Phase(steps=5, photos=2, expressions=3)]
    assert read.model["backbone_config"]["depths"] == [1, 1, 1, 1]
    assert read.data.mirror == 0.0 and isinstance(read.data.mirror, float)
    assert read.training.max_steps is None and read.backbone_weights is None and read.sentences == []


@pytest.mark.parametrize(
    ("changes", "key", "near"),
    [
        ({"data": {"miror": 0.5}}, "data.miror", "mirror"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "learning_rate"),
        ({"model": {"agregation": "hcam"}}, "model.agregation", "aggregation"),
        ({"sentence": []}, "sentence", "sentences"),
        (
            {"training": {"phases": [{"steps": 1, "photos": 1, "expresions": 1}]}},
            r"training.phases\[0\].expresions",
            "expressions",
        ),
    ],
)
def test_an_unknown_key_names_the_valid_ones_and_the_near_one(recipe, changes, key, near):
    with pytest.raises(RefsegError, match=rf"unknown recipe key {key}; did you mean {near}\? valid: .*{near}"):
        recipe(**changes)


def test_a_key_like_no_other_is_not_guessed_at(recipe):
    with pytest.raises(RefsegError, match=r"unknown recipe key data\.qqqq; valid: absent, crop, draw, greyscale"):
        recipe(data={"qqqq": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"seed": "one"}}, r"training\.seed must be of type int, not 'one'"),
        ({"training": {"seed": True}}, r"training\.seed must be of type int, not True"),
        ({"training": {"seed": 1.5}}, r"training\.seed must be of type int"),
        ({"training": {"bf16": 1}}, r"training\.bf16 must be of type bool"),
        ({"training": {"learning_rate": True}}, r"training\.learning_rate must be of type float"),
        ({"training": {"learning_rate": "quick"}}, r"training\.learning_rate must be of type float"),
        ({"training": {"phases": [7]}}, r"training\.phases\[0\] must be a section"),
        ({"training": {"phases": [{"steps": 1, "photos": 1}]}}, r"lacks training\.phases\[0\]\.expressions"),
        ({"data": {"train": [3]}}, r"data\.train\[0\] must be of type str"),
        ({"data": "scenes:4"}, "data must be a section"),
        ({"model": [1]}, "model must be of type dict"),
        ({"data": None}, "lacks data"),
        ({"training": None}, "lacks training"),
    ],
)
def test_faults_name_the_key(recipe, changes, message):
    with pytest.raises(RefsegError, match=message):
        recipe(**changes)


def phases(**changes):
    return {"phases": [{"steps": 1, "photos": 1, "expressions": 1, **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": []}}, r"data\.train is empty"),
        ({"data": {"mirror": 7.0}}, r"data\.mirror must lie between 0 and 1"),
        ({"data": {"jitter": -0.1}}, r"data\.jitter must lie"),
        ({"training": {"phases": []}}, r"training\.phases is empty"),
        ({"training": {"log_steps": 0}}, "log_steps"),
        ({"training": phases(steps=0)}, r"phases\[0\]: steps and photos must be 1 or more"),
        ({"training": phases(photos=0)}, r"phases\[0\]: steps and photos must be 1 or more"),
        ({"training": phases(side=1)}, r"phases\[0\]\.side"),
        ({"training": phases(siblings=1.5)}, r"phases\[0\]\.siblings must lie between 0 and 1"),
        ({"training": phases(typed=-0.5)}, r"phases\[0\]\.typed must lie between 0 and 1"),
        ({"data": {"zoom": 0}}, r"data\.zoom must be more than 0"),
        ({"data": {"draw": "words"}}, "data.draw must be one of: photographs, expressions"),
        (
            {"data": {"draw": "expressions"}, "training": phases(typed=0.5)},
            "without aligned, kinds, siblings and typed",
        ),
        (
            {
                "data": {"draw": "expressions"},
                "training": {"phases": [{"steps": 1, "photos": 1, "expressions": n} for n in (1, 2)]},
            },
            "one and the same number of expressions",
        ),
        ({"training": {"target": "third"}}, "training.target must be one of: cells, half, full"),
        ({"data": {"greyscale": 2}}, r"data\.greyscale must lie between 0 and 1"),
        ({"training": {"schedule": "cosine"}}, "training.schedule must be one of: polynomial, plateau"),
        ({"training": {"schedule": "plateau"}}, r"plateau needs a training\.validation and no warmup_steps"),
        ({"training": {"accumulate": 0}}, "accumulate must be 1 or more"),
        ({"training": {"max_grad_norm": -1}}, "max_grad_norm must be 0 or more"),
        ({"training": {"bf16": True, "fp16": True}}, "exclude each other"),
        ({"training": {"validation": {"every": 5}}}, r"validation has nothing to read; name data\.val"),
        ({"data": {"val": "x"}, "training": {"validation": {"every": 0}}}, "validation: every, photos and patience"),
        ({"data": {"val": "x"}, "training": {"validation": {"every": 5, "patience": 0}}}, "must be 1 or more"),
        ({"data": {"val": "x"}, "training": {"validation": {"every": 5, "measure": "iou"}}}, "mean_iou, overall_iou"),
        ({"training": {"validation": {}}}, r"lacks training\.validation\.every"),
        ({"start": "shipped", "start_share": 1.0}, "start_share must be 0 or more and less than 1"),
        ({"start_share": 0.3}, "needs a start"),
        ({"tokens": "bytes"}, "tokens must be one of: words, letters"),
        ({"unknown_vector": "random"}, "unknown_vector must be one of: mean, zero"),
        ({"start": "shipped", "tokens": "letters"}, "start brings its own words"),
        ({"training": phases(expressions=0)}, r"phases\[0\] learns nothing"),
        ({"training": phases(expressions=0, aligned=5)}, "alignment_weight"),
        ({"training": {**phases(expressions=0), "alignment_weight": 1}}, "aligned"),
        ({"model": {"backbone_config": {"model_type": "resnet", "depthss": [1]}}}, "did you mean depths"),
    ],
)
def test_values_no_run_can_use(recipe, changes, message):
    with pytest.raises(RefsegError, match=message):
        recipe(**changes)


def test_a_phase_may_train_the_encoders_alone(recipe):
    assert recipe(training={**phases(expressions=0, aligned=5), "alignment_weight": 1}).training.phases[0].aligned == 5


def test_one_value_is_a_list_of_one(recipe):
    assert recipe(data={"train": "scenes:9"}).data.train == ["scenes:9"]


def test_overrides(recipe):
    read = recipe(
        "training.learning_rate=1e-4",
        "training.max_steps=7",
        "training.bf16=true",
        "data.train=[scenes:1, scenes:2]",
        "model.dropout=1e-1",
        "model.backbone_config.depths=[2, 2]",
        "word_vectors=glove.txt",
        "training.phases=[{steps: 3, photos: 1, expressions: 2, side: 32}]",
    )
    assert read.training.learning_rate == 1e-4
    assert (read.training.max_steps, read.training.bf16) == (7, True)
    assert read.data.train == ["scenes:1", "scenes:2"]
    assert read.model["dropout"] == 0.1 and read.model["width"] == 16
    assert read.model["backbone_config"] == {"model_type": "resnet", "depths": [2, 2]}
    assert read.word_vectors == "glove.txt"
    assert read.training.phases == [Phase(steps=3, photos=1, expressions=2, side=32)]


def test_an_override_can_take_a_value_back(recipe):
    assert recipe("training.max_steps=null", training={"max_steps": 3}).training.max_steps is None


def test_floats_as_people_write_them(recipe):
    """YAML 1.1 reads 1e-4 as text."""
    assert recipe(training={"learning_rate": "1e-4"}).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", r"--training\.max_steps lacks a value"),
        ("training.output.deep=1", "output is no section"),
        ("training.max_step=1", r"unknown recipe key training\.max_step; did you mean max_steps\?"),
        ("trainig.max_steps=1", r"unknown recipe key trainig; did you mean training\?"),
        ("training.max_steps=soon", r"training\.max_steps must be of type int"),
        ("data.train=[scenes:1", r"data\.train"),
    ],
)
def test_faults_of_overrides(recipe, override, message):
    with pytest.raises(RefsegError, match=message):
        recipe(override)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "text", "a: [1,", "\x00"])
def test_files_that_are_no_recipe(tmp_path, content):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(RefsegError, match=r"recipe\.yaml"):
        load_recipe(file)


def test_a_recipe_that_is_not_there(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(RefsegError, match=str(path)):
            load_recipe(path)


def test_a_recipe_changes_single_values_of_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(WHOLE))
    (tmp_path / "deeper").mkdir()
    upper = tmp_path / "deeper" / "upper.yaml"
    upper.write_text(
        yaml.safe_dump(
            {
                "base": "../middle.yaml",
                "model": {"backbone_config": {"depths": [2]}},
                "training": {"output": "runs/y"},
                "word_vectors": None,
            }
        )
    )
    middle = {"base": "base.yaml", "model": {"width": 32}, "data": {"train": ["scenes:1", "scenes:2"]}}
    (tmp_path / "middle.yaml").write_text(yaml.safe_dump({**middle, "word_vectors": "glove.txt"}))
    read = load_recipe(upper, ["model.grid=6"])
    assert read.model == {"width": 32, "grid": 6, "backbone_config": {"model_type": "resnet", "depths": [2]}}
    assert read.data.train == ["scenes:1", "scenes:2"] and read.data.mirror == 0
    assert read.training.output == "runs/y" and read.training.phases == [Phase(steps=5, photos=2, expressions=3)]
    assert read.word_vectors is None
    assert load_recipe(upper, ["base=../base.yaml", "model.backbone_config.depths=[3]"]).model == {
        "width": 16,
        "backbone_config": {"model_type": "resnet", "depths": [3]},
    }
    assert load_recipe(tmp_path / "middle.yaml").word_vectors == "glove.txt"
    assert load_recipe(tmp_path / "base.yaml").model == WHOLE["model"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"base": "a.yaml"}}, r"a\.yaml builds on itself by way of base: a\.yaml"),
        ({"a": {"base": "b.yaml"}, "b": {"base": "c.yaml"}, "c": {"base": "./b.yaml"}}, r"c\.yaml builds on itself"),
        ({"a": {"base": "gone.yaml"}}, r"there is no recipe .*gone\.yaml, the base of .*a\.yaml"),
        ({"a": {"base": 7}}, "base must be of type str"),
        ({"a": {"base": "b.yaml", **WHOLE}, "b": {"model": {"widht": 1}}}, r"model\.widht; did you mean width"),
        ({"a": {"base": "b.yaml"}, "b": {**WHOLE, "data": {}}}, r"lacks data\.train"),
        ({"a": {"bas": "b.yaml", **WHOLE}}, r"unknown recipe key bas; did you mean base\?"),
        ({"a": {"base": "b.yaml", "training": 3}, "b": WHOLE}, "training must be a section"),
    ],
)
def test_faults_of_a_base(tmp_path, files, message):
    for name, raw in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(RefsegError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "recipes/unc+").mkdir(parents=True)
    monkeypatch.setattr("refseg.training.recipe.RECIPES", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path / "recipes")
    for name in ("small", "unc+/shnet-448"):
        (tmp_path / f"recipes/{name}.yaml").write_text(yaml.safe_dump(WHOLE))
    found = {"small": "small", "recipes/small.yaml": "small", "unc+/shnet-448": "unc+/shnet-448"}
    assert {name: find_recipe(name) for name in found} == {
        name: tmp_path / f"recipes/{file}.yaml" for name, file in found.items()
    }
    assert load_recipe("unc+/shnet-448").training.output == "runs/x"
    assert find_recipe("small.yaml").resolve() == tmp_path / "recipes/small.yaml", "a file comes before a name"
    assert find_recipe("other.yaml") == Path("other.yaml") and find_recipe("") == Path()


def test_a_base_may_be_a_recipe_of_the_package(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"base": "unc/shnet", "model": {"fusion_layers": 1}}))
    assert load_recipe(mine).training == load_recipe("unc/shnet").training
    assert diff_recipes("unc/shnet", mine) == {"model.fusion_layers": (2, 1)}
    (tmp_path / "unc").mkdir()
    (tmp_path / "unc/shnet").write_text(yaml.safe_dump(WHOLE))
    assert load_recipe(mine).training.output == "runs/x", "a file beside it comes first"


@pytest.fixture
def two_recipes(tmp_path):
    base, upper = tmp_path / "base.yaml", tmp_path / "upper.yaml"
    base.write_text(yaml.safe_dump(WHOLE))
    upper.write_text(
        "base: base.yaml\nmodel: {fusion: concat, width: 128}\ntraining: {learning_rate: 3e-3, max_steps: 9}"
    )
    return base, upper


def test_a_recipe_is_shown_with_its_base(two_recipes, tmp_path):
    _, upper = two_recipes
    shown = tmp_path / "shown.yaml"
    shown.write_text(show_recipe(upper, ["data.mirror=0.25"]))
    raw = yaml.safe_load(shown.read_text())
    assert "base" not in raw and raw["training"]["output"] == "runs/x" and raw["model"]["fusion"] == "concat"
    assert load_recipe(shown) == dataclasses.replace(load_recipe(upper, ["data.mirror=0.25"]), base=None)
    with pytest.raises(RefsegError, match=r"unknown recipe key data\.miror"):
        show_recipe(upper, ["data.miror=0.25"])


def test_recipes_differ_in_values_with_defaults_for_what_is_left_out(two_recipes):
    """`width: 128` is the default, and so is what the base leaves out."""
    base, upper = two_recipes
    assert diff_recipes(base, upper) == {
        "model.width": (16, 128),
        "model.fusion": ("sfm", "concat"),
        "training.learning_rate": (1.2e-4, 3e-3),
        "training.max_steps": (None, 9),
    }
    assert diff_recipes(upper, upper) == {}
    assert diff_recipes(upper, base)["model.fusion"] == ("concat", "sfm")
