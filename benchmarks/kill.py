"""Kills a training run at random moments until it has been killed 20 times, and compares what comes out.

    python benchmarks/kill.py --kills 20 --workers 2

A small network learns rendered scenes for some dozen steps with a checkpoint every second step, and everything random
switched on. Each time it is killed (SIGKILL), every checkpoint must be whole; then it resumes. A run that ends must
equal, bit for bit, the one that nobody disturbed: weights, optimizer, schedule, random states and the loss of every
step. Prints a summary as JSON and ends with 1 if something differs. Runs on CPU, on Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from refseg.training.run import run

STEPS, SAVED = 36, 2
RECIPE = {
    "model": {
        "backbone_config": {
            "model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 32], "drop_path_rate": 0.1,
        },
        "freeze_backbone": False, "image_size": 64, "grid": 8, "width": 32, "word_size": 16, "fusion_layers": 1,
        "fusion_heads": 2, "fusion_ffn": 32, "aspp_rates": [1, 2, 3], "decoder_widths": [16, 16, 16], "dropout": 0.2,
    },
    "data": {
        "train": ["scenes:8"], "per_photo": 12,
        "mirror": 0.5, "crop": 0.5, "jitter": 0.2, "word_dropout": 0.3, "absent": 0.2,
    },
    "training": {
        "output": "", "phases": [{"steps": STEPS, "photos": 3, "expressions": 4, "aligned": 12}],
        "learning_rate": 4e-3, "backbone_learning_rate": 4e-3, "alignment_weight": 1.0, "dice_weight": 1.0,
        "warmup_steps": 4, "save_steps": SAVED, "log_steps": 1,
    },
}  # fmt: skip
COMPARED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def train(recipe: Path, output: Path, workers: int, seconds: float | None = None, steadily: bool = False) -> bool:
    """One process that starts or resumes the run; whether it came to its end before it was killed.

    It is killed after `seconds`, which count from its start or, if `steadily`, from its first new checkpoint.
    """
    newest = last(output)
    overrides = [f"training.output={output}", f"training.workers={workers}"]
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(recipe, overrides, newest > 0))
    process.start()
    while steadily and process.is_alive() and last(output) == newest:
        time.sleep(0.005)
    process.join(seconds)
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        raise SystemExit(
            f"training ended with {process.exitcode} in {output}: {(recipe.parent / 'log.txt').read_text()}"
        )
    return process.exitcode == 0


def last(output: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    return max((int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*")), default=0)


def _quietly(recipe: Path, overrides: list[str], resume: bool) -> None:
    with (recipe.parent / "log.txt").open("a") as said, redirect_stdout(said), redirect_stderr(said):
        run(recipe, overrides, resume)


def check_whole(output: Path) -> int:
    """The number of checkpoints; raises where one of them cannot be read."""
    checkpoints = list(output.glob("checkpoint-*"))
    for checkpoint in checkpoints:
        with safe_open(checkpoint / "model.safetensors", "pt") as weights:
            [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 (not a dictionary)
        torch.load(checkpoint / "optimizer.pt", weights_only=True)
        json.loads((checkpoint / "trainer_state.json").read_text())
        assert (checkpoint / "rng_state.pth").stat().st_size > 0
    return len(checkpoints)


def differences(first: Path, second: Path) -> list[str]:
    """What two finished runs do not have in common."""
    last = f"checkpoint-{STEPS}"
    names = ["model.safetensors", *(f"{last}/{name}" for name in COMPARED)]
    differing = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    return differing + ["losses"] * (losses(first / last) != losses(second / last))


def losses(checkpoint: Path) -> list[tuple[Any, ...]]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [tuple(line[key] for key in ("step", "loss", "grad_norm", "learning_rate")) for line in history[:STEPS]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="processes that load the data")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    report: dict[str, Any] = {"kills": 0, "before_the_first_checkpoint": 0, "while_writing_one": 0, "finished_runs": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["REFSEG_CACHE"] = str(folder / "cache")
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        train(recipe, folder / "first", options.workers)  # renders the scenes
        began = time.perf_counter()
        train(recipe, folder / "undisturbed", options.workers)
        whole_run = time.perf_counter() - began
        report["undisturbed_twice_differ"] = differences(folder / "first", folder / "undisturbed")
        differing: list[str] = []
        output = folder / "run-0"
        while report["kills"] < options.kills or report["finished_runs"] == 0:
            more = report["kills"] < options.kills
            # A quarter of them from the start, where a run loads and starts to learn; the others further on.
            limit = rng.uniform(0, whole_run / 9) if more else None
            if train(recipe, output, options.workers, limit, steadily=more and report["kills"] % 4 > 0):
                differing += differences(folder / "undisturbed", output)
                report["finished_runs"] += 1
                output = folder / f"run-{report['finished_runs']}"
                continue
            report["kills"] += 1
            report["before_the_first_checkpoint"] += check_whole(output) == 0
            report["while_writing_one"] += (output / "unfinished").exists()
        report["differing"] = sorted(set(differing))
    report |= {"steps": STEPS, "save_steps": SAVED, "workers": options.workers, "seconds_undisturbed": whole_run}
    report["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    report["passed"] = not differing and not report["undisturbed_twice_differ"]
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
