"""Recipes: one YAML file is one training run. An unknown key is an error that names the valid ones."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from refseg.errors import RefsegError

DRAWS = ("photographs", "expressions")
"""What a round of training shows once. See `DataRecipe.draw`."""
SCHEDULES = ("polynomial", "plateau")
"""How the learning rate can fall. See `TrainingRecipe.schedule`."""
TARGETS = ("cells", "half", "full", "dilated")
"""What mask logits can be compared with. See `TrainingRecipe.target`."""
TOKENS = ("words", "letters")
"""How sentences become words. See `Recipe.tokens`."""
UNKNOWN_VECTORS = ("mean", "zero")
"""What a word without a vector can start from. See `Recipe.unknown_vector`."""
MEASURES = ("mean_iou", "overall_iou")
"""The measures by which the best model of a run can be chosen."""


@dataclass(frozen=True)
class DataRecipe:
    train: list[str]
    """Data to learn from. Each entry is anything that `refseg evaluate --data` takes (see `data.sources.load_rows`).

    Data that are named twice are shown twice as often.
    """
    val: list[str] = field(default_factory=list)
    """Unseen data. Training reads them only if it has a `validation`, and never learns from them."""
    draw: str = "photographs"
    """What every round shows once: all `photographs`, with expressions drawn at random, or all `expressions`.

    With `photographs`, an expression is shown more often if its photograph has few.
    """
    per_photo: int = 40
    """The most expressions that are generated for one photograph of annotated segments."""
    mirror: float = 0.5
    """Share of photographs that are mirrored, with left and right exchanged in their sentences. 0 turns it off."""
    crop: float = 0.3
    """Share of photographs that are cropped, with only the sentences that no crop makes untrue. 0 turns it off."""
    zoom: float = 0.6
    """Smallest side of a crop, as a share of the photograph's side. Small crops make small things large."""
    jitter: float = 0.2
    """The largest change of brightness and contrast, 0..1. 0 turns it off."""
    greyscale: float = 0.0
    """Share of photographs shown in grey, even if their sentences name colours. 0 turns it off."""
    word_dropout: float = 0.03
    """Share of words that are shown as unknown, so that the unknown word means something. 0 turns it off."""
    absent: float = 0.0
    """Share of expressions about something that is not in the photograph. Their answer is an empty mask."""


@dataclass(frozen=True)
class Phase:
    """A part of training. Phases follow each other and share one learning-rate schedule."""

    steps: int
    photos: int
    """Photographs per step and process. Each is encoded once for all its expressions."""
    expressions: int
    """Expressions per photograph for the whole network. 0 trains only the encoders."""
    aligned: int = 0
    """Expressions per photograph for the alignment loss, which costs about a twentieth."""
    side: int | None = None
    """Side of the network input, in pixels; the grid follows it. None is the model's own side."""
    siblings: float = 0.0
    """Share of expressions whose referent has siblings, as far as a photograph has such expressions.

    0 leaves the share to chance.
    """
    typed: float = 0.0
    """Share of expressions that people typed, those that mean nothing included, as far as a photograph has them.

    0 leaves the share to chance.
    """
    kinds: list[str] = field(default_factory=list)
    """Kinds of expressions for the alignment loss, all equally often. An empty list admits all kinds."""


@dataclass(frozen=True)
class ValidationRecipe:
    """How `data.val` is scored during training. The best reading becomes the finished model."""

    every: int
    """Steps between two readings."""
    protocol: str = "native"
    """The scoring protocol; see docs/protocols.md."""
    measure: str = "mean_iou"
    """What decides which reading is best: `mean_iou` or `overall_iou`."""
    photos: int | None = None
    """Photographs of each reading, spread evenly over all. None reads all of them."""
    patience: int | None = None
    """The run ends after this many readings without a new best. None runs to the end."""


@dataclass(frozen=True)
class TrainingRecipe:
    output: str
    """Folder for checkpoints, TensorBoard events and the finished model."""
    phases: list[Phase]
    max_steps: int | None = None
    """Ends the run early; the learning rate follows the schedule of all phases. None runs every phase to its end."""
    learning_rate: float = 1.2e-4
    backbone_learning_rate: float = 0.0
    """Learning rate of the backbone, if the model does not freeze it."""
    weight_decay: float = 9e-5
    decay_vectors: bool = False
    """Whether the weight decay also reaches biases and norms."""
    schedule: str = "polynomial"
    """How the learning rate falls: `polynomial` (paper, section 4.2), or `plateau`.

    `plateau` divides the rate by ten after three readings of the validation in a row without a gain of a thousandth.
    """
    power: float = 0.7
    """The power of the polynomial schedule."""
    warmup_steps: int = 0
    alignment_weight: float = 0.0
    dice_weight: float = 0.0
    choice_weight: float = 0.0
    """Weight of the loss for telling the referent from its siblings; see `losses.choice_loss`. 0 turns it off."""
    auxiliary_weight: float = 0.1
    """Weight of the loss of each auxiliary map and outline (see `models.interface.Prediction`), where there are any."""
    target: str = "cells"
    """What the mask logits are compared with.

    `cells` is the share of each logit's cell that the mask covers. `half` and `full` are the mask itself, at half or
    all of the side of the network input; the logits are resized to it. `dilated` is every pixel at half the side that
    the mask touches when it is resized bilinearly, as in the code that SHNet's authors released.
    """
    accumulate: int = 1
    """Batches whose gradients make one step. A step sees more photographs in the memory of one batch."""
    max_grad_norm: float = 1.0
    """The longest gradient. A longer one is scaled down. 0 turns it off."""
    bf16: bool = False
    """Compute in bfloat16 if the machine has instructions for it."""
    fp16: bool = False
    """Compute in float16 with a scaled loss, on a GPU. bfloat16 needs no scaling; use it if the GPU has it."""
    workers: int = 0
    """Processes that prepare batches. 0 prepares them in the training process itself."""
    save_steps: int = 500
    log_steps: int = 50
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Trackers that transformers knows, such as tensorboard, wandb or mlflow. An empty list reports to none."""
    validation: ValidationRecipe | None = None
    """How `data.val` is scored during training. None never reads it."""
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    model: dict[str, Any]
    """`model_type`, which is shnet if left out, and fields of that network's config."""
    data: DataRecipe
    training: TrainingRecipe
    base: str | None = None
    """A recipe that this one changes: a file, relative to its own folder, or a recipe of the package.

    Values here replace single values there. Lists are replaced whole.
    """
    start: str | None = None
    """A trained model to fine-tune: `shipped`, a folder or a hub id. Its shapes and words are kept, and new words are
    added. `model` has what else should differ."""
    start_share: float = 0.0
    """Share of the weights of `start` in the finished model, 0 or more and below 1. The mean of both weights keeps what
    the new data teach and what they make a model forget (Wortsman et al., "Robust fine-tuning of zero-shot models",
    CVPR 2022)."""
    backbone_weights: str | None = None
    """A transformers checkpoint, or a detector's folder, for the backbone. None starts from random weights."""
    sentences: list[str] = field(default_factory=list)
    """Files of sentences without masks. Their words join the vocabulary, with vectors learnt from the words around."""
    word_vectors: str | None = None
    """A text file of word vectors in GloVe's format, from which the embedding starts."""
    unknown_vector: str = "mean"
    """The vector from which words start that `word_vectors` lacks.

    `mean`: the unknown word starts at the mean of all vectors, which belongs to no word and is far from none, and words
    of the training start at random. `zero`: all start at zero, as in the code that SHNet's authors released.
    """
    tokens: str = "words"
    """How sentences become words.

    `words` are all, numbers included, with punctuation split off, because "2nd" can tell which thing is meant.
    `letters` are only those made of letters, as in the code that SHNet's authors released.
    """


RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes of the package."""


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a recipe of the package, such as `scenes` or `unc/shnet`.

    `recipes/scenes.yaml` is found even if there is no such file, so that the commands of the documentation work
    anywhere. Returns the path itself if nothing is found.
    """
    path = Path(name)
    within = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    packaged = RECIPES / within.with_suffix(".yaml") if within.name else path
    return packaged if packaged.is_file() and not path.is_file() else path


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe (see `find_recipe`). Overrides such as `training.max_steps=100` replace single values.

    Except for its base, paths in a recipe are relative to the folder from which refseg is started. Raises RefsegError.
    """
    recipe: Recipe = _build(Recipe, _read(find_recipe(name), overrides), "")
    _check_model(recipe.model)
    if recipe.start and recipe.backbone_weights:
        raise RefsegError("start brings its own backbone; leave out one of start and backbone_weights")
    if not 0 <= recipe.start_share < 1 or (recipe.start_share and not recipe.start):
        raise RefsegError("start_share must be 0 or more and less than 1, and needs a start")
    for name, valid in (("tokens", TOKENS), ("unknown_vector", UNKNOWN_VECTORS)):
        if getattr(recipe, name) not in valid:
            raise RefsegError(f"{name} must be one of: {', '.join(valid)}")
    if recipe.start and recipe.tokens != Recipe.tokens:
        raise RefsegError("start brings its own words; leave out one of start and tokens")
    _check_values(recipe.data, recipe.training)
    return recipe


def show_recipe(name: str | Path, overrides: Sequence[str] = ()) -> str:
    """The recipe as YAML, with its bases and the overrides applied. Values that are left out have their defaults.

    Raises RefsegError as `load_recipe` does.
    """
    load_recipe(name, overrides)
    raw = _read(find_recipe(name), overrides)
    raw.pop("base", None)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120)


def diff_recipes(first: str | Path, second: str | Path) -> dict[str, tuple[Any, Any]]:
    """The values in which two recipes differ: by dotted key, the first's and the second's.

    A value that a recipe leaves out counts as its default. Raises RefsegError as `load_recipe` does.
    """
    ours, theirs = (_flat(load_recipe(name)) for name in (first, second))
    keys = dict.fromkeys((*ours, *theirs))
    pairs = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(recipe: Recipe) -> dict[str, Any]:
    """All values of a recipe by their dotted keys. The network's are left out if the recipe has a `start`."""
    from refseg.models.registry import network_of

    model = recipe.model
    if not recipe.start:
        config = network_of(model).config_class
        model = {name: getattr(config, name, None) for name in config.settings()} | model
    flat: dict[str, Any] = {}

    def lay(where: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                lay(f"{where}.{key}" if where else str(key), inner)
        else:
            flat[where] = list(value) if isinstance(value, tuple) else value

    lay("", dataclasses.asdict(dataclasses.replace(recipe, model=model, base=None)))
    return flat


def _read(path: Path, overrides: Sequence[str] = (), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's keys with the overrides, applied to those of its base."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        named = f", the base of {above[-1]}" if above else f"; give a file, or one of: {known}"
        raise RefsegError(f"there is no recipe {path}{named}") from fault
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise RefsegError(f"{path} cannot be read as YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(raw, dict):
        raise RefsegError(f"{path} is not a recipe; it needs the sections model, data and training")
    for override in overrides:
        _override(raw, override)
    if raw.get("base") is None:
        return raw
    base = path.parent / _cast_plain(str, raw["base"], "base")
    if not base.is_file() and find_recipe(raw["base"]).is_file():
        base = find_recipe(raw["base"])
    if base.resolve() in {file.resolve() for file in (*above, path)}:
        raise RefsegError(f"{path} builds on itself by way of base: {raw['base']}; name another recipe or none")
    return _lay(raw, _read(base, above=(*above, path)))


def _lay(upper: dict[str, Any], lower: dict[str, Any]) -> dict[str, Any]:
    """Both, section by section. The upper one's values win."""
    laid = dict(upper)
    for key, value in lower.items():
        if key not in laid:
            laid[key] = value
        elif isinstance(value, dict) and isinstance(laid[key], dict):
            laid[key] = _lay(laid[key], value)
    return laid


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign:
        raise RefsegError(f"--{key} lacks a value; write --{key} VALUE")
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise RefsegError(f"--{key}: {section} is no section of the recipe")
    try:
        raw[last] = _number(yaml.safe_load(value))
    except yaml.YAMLError as fault:
        raise RefsegError(f"--{key}: {value!r} cannot be read as YAML; close its brackets and quotes") from fault


def _number(value: Any) -> Any:
    """The value, or the number that it writes: YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _build(kind: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise RefsegError(f"{where.rstrip('.') or 'the recipe'} must be a section of `key: value` lines")
    hints = typing.get_type_hints(kind)
    _check_keys(raw, list(hints), where)
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in raw
    ]
    if missing:
        raise RefsegError(f"the recipe lacks {where}{missing[0]}; see `refseg recipe show scenes` for an example")
    return kind(**{key: _cast(hints[key], value, where + key) for key, value in raw.items()})


def _check_keys(raw: dict[str, Any], valid: list[str], where: str) -> None:
    for key in raw:
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RefsegError(f"unknown recipe key {where}{key}; {hint}valid: {', '.join(sorted(valid))}")


def _cast(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _cast(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where + ".")
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_cast(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        return _cast_plain(dict, value, where)
    if hint is float:
        value = _number(value)
        return (
            float(value) if isinstance(value, int) and not isinstance(value, bool) else _cast_plain(float, value, where)
        )
    return _cast_plain(hint, value, where)


def _cast_plain(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RefsegError(f"recipe key {where} must be of type {kind.__name__}, not {value!r}")
    return value


def _check_model(model: dict[str, Any]) -> None:
    from refseg.models.parts.backbone import read_backbone_config
    from refseg.models.registry import network_of

    _check_keys(model, ["model_type", *network_of(model).config_class.settings()], "model.")
    backbone = model.get("backbone_config")
    if isinstance(backbone, dict) and "model_type" in backbone:
        plain = read_backbone_config({"model_type": backbone["model_type"]})
        _check_keys(backbone, list(plain.to_dict()), "model.backbone_config.")


def _check_values(data: DataRecipe, training: TrainingRecipe) -> None:
    """Raises RefsegError for values that no run can use."""
    rules = [
        (bool(data.train), "data.train is empty; name data, such as scenes:3000"),
        (0 < data.zoom <= 1, "data.zoom must be more than 0 and at most 1"),
        (data.draw in DRAWS, f"data.draw must be one of: {', '.join(DRAWS)}"),
        (bool(training.phases), "training.phases is empty; give one phase at least"),
        (min(training.log_steps, training.save_steps) > 0, "training.log_steps and save_steps must be 1 or more"),
        (training.workers >= 0, "training.workers must be 0 or more"),
        (training.accumulate > 0, "training.accumulate must be 1 or more"),
        (training.max_grad_norm >= 0, "training.max_grad_norm must be 0 or more"),
        (training.target in TARGETS, f"training.target must be one of: {', '.join(TARGETS)}"),
        (training.schedule in SCHEDULES, f"training.schedule must be one of: {', '.join(SCHEDULES)}"),
        (
            training.schedule != "plateau" or (training.validation is not None and not training.warmup_steps),
            "training.schedule: plateau needs a training.validation and no warmup_steps",
        ),
        (not (training.bf16 and training.fp16), "training.bf16 and fp16 exclude each other; keep one"),
    ]
    for share in ("mirror", "crop", "jitter", "greyscale", "word_dropout", "absent"):
        rules.append((0 <= getattr(data, share) <= 1, f"data.{share} must lie between 0 and 1"))
    if data.draw == "expressions":
        counts = {phase.expressions for phase in training.phases}
        chosen = any(phase.kinds or phase.siblings or phase.typed or phase.aligned for phase in training.phases)
        fault = "data.draw: expressions needs phases with one and the same number of expressions"
        rules.append((len(counts) == 1 and not chosen, f"{fault}, and without aligned, kinds, siblings and typed"))
    for number, phase in enumerate(training.phases):
        where = f"training.phases[{number}]"
        learns = phase.expressions > 0 or (phase.aligned > 0 and training.alignment_weight > 0)
        rules += [
            (min(phase.steps, phase.photos) > 0, f"{where}: steps and photos must be 1 or more"),
            (learns, f"{where} learns nothing; give it expressions, or aligned and an alignment_weight"),
            (phase.side is None or phase.side >= 32, f"{where}.side must be 32 pixels or more"),
            (0 <= phase.siblings <= 1, f"{where}.siblings must lie between 0 and 1"),
            (0 <= phase.typed <= 1, f"{where}.typed must lie between 0 and 1"),
        ]
    if validation := training.validation:
        where = "training.validation"
        numbers = [count for count in (validation.every, validation.photos, validation.patience) if count is not None]
        rules += [
            (bool(data.val), f"{where} has nothing to read; name data.val"),
            (min(numbers) > 0, f"{where}: every, photos and patience must be 1 or more"),
            (validation.measure in MEASURES, f"{where}.measure must be one of: {', '.join(MEASURES)}"),
        ]
    for holds, fault in rules:
        if not holds:
            raise RefsegError(fault)
