"""A training run of seconds, for tests: a recipe and what runs it."""

import yaml
from tiny import TINY

MODEL = {
    **{name: value for name, value in TINY.items() if name != "vocabulary"},
    "backbone_config": {
        "model_type": "convnext",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 24, 32, 32],
        "drop_path_rate": 0.0,
    },
    "freeze_backbone": False,
    "grid": 8,
    "width": 32,
    "word_size": 16,
    "fusion_ffn": 32,
    "decoder_widths": [16, 16, 16],
    "dropout": 0.0,
}
SCENES, PER_PHOTO = "scenes:6", 12


def write_recipe(folder, steps, model=(), data=(), training=(), network=MODEL):
    recipe = {
        "model": {**network, **dict(model)},
        "data": {
            "train": [SCENES],
            "per_photo": PER_PHOTO,
            **{"mirror": 0.0, "crop": 0.0, "jitter": 0.0, "word_dropout": 0.0},
            **dict(data),
        },
        "training": {
            "output": str(folder / "run"),
            "phases": [{"steps": steps, "photos": 3, "expressions": 4, "aligned": 12}],
            "learning_rate": 4e-3,
            "backbone_learning_rate": 4e-3,
            "alignment_weight": 1.0,
            "dice_weight": 1.0,
            "warmup_steps": 10,
            "log_steps": 20,
            **dict(training),
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def train(recipe, *overrides, resume=False):
    from refseg.training.run import run

    return run(recipe, overrides, resume)
