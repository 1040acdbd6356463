"""Tables 2 and 4 of the paper, here and now: every row learns with equal means, each with several seeds.

    python benchmarks/tables.py scenes --encoder runs/scenes --jobs 2
    python benchmarks/tables.py photos --jobs 2

A row is what its recipe in recipes/unc changes of the network, laid over recipes/tables/DATA.yaml. A run is one process
of one thread; what has a report is done, so that the command goes on where it was stopped. Reports are written to
runs/tables/DATA/reports/ROW/SEED.json and compared at the end, as `refseg report` does: Markdown on standard output,
CSV in results/tables-DATA.csv, with `--longer N` in results/tables-DATA-N.csv.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

import refseg
from refseg.data.sources import load_rows
from refseg.data.table import read_table, write_table
from refseg.evaluation.comparison import read_runs, to_csv, to_markdown
from refseg.evaluation.evaluate import evaluate
from refseg.training.recipe import RECIPES, load_recipe
from refseg.training.run import run

ROWS = (
    "shnet",
    "baseline",
    "only-hcam",
    "only-sfm",
    "sfm-convlstm",
    "sfm-conv3d",
    "without-position",
    "without-glove",
    "mgate",
    "tgfe",
    "gbfm",
)
"""The others are held against the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("scenes", "photos"))
    parser.add_argument("--encoder", type=Path, help="a checkpoint of refseg whose backbone serves all rows")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, of one thread each")
    parser.add_argument("--longer", type=int, default=1, help="so many times the steps: is the curve flat?")
    options = parser.parse_args()
    path = RECIPES / "tables" / f"{options.data}.yaml"
    recipe = load_recipe(path)
    folder = Path("runs/tables") / (options.data if options.longer == 1 else f"{options.data}-{options.longer}")
    train, val = table(folder / "train.jsonl", recipe.data.train), table(folder / "val.jsonl", recipe.data.val)
    shared = [f"data.train=[{train}]"]
    if options.encoder:
        shared.append(f"backbone_weights={backbone(options.encoder, folder / 'encoder')}")
    if options.longer > 1:
        phases = [asdict(phase) | {"steps": phase.steps * options.longer} for phase in recipe.training.phases]
        shared.append(f"training.phases={json.dumps(phases)}")
    # No words of scenes are rarer than others, and no vectors are learnt for them: there the row would be SHNet itself.
    rows = [row for row in options.rows if not (row == "without-glove" and options.data == "scenes")]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = [
            pool.submit(one, folder, row, seed, path, [*shared, *changes(row)], val)
            for seed in range(options.seeds)
            for row in rows
            if not report_of(folder, row, seed).exists()
        ]
        for done in tqdm(as_completed(runs), desc="runs", total=len(runs)):
            print(done.result(), flush=True)
    lines = [read_runs(folder / "reports" / row) for row in rows]
    print(to_markdown(lines))
    Path("results", f"tables-{folder.name}.csv").write_text(to_csv(lines) + "\n")


def table(path: Path, specs: list[str]) -> Path:
    """The expressions, written once for all runs."""
    if not path.exists():
        write_table(path, (row for spec in specs for row in load_rows(spec)))
    return path


def backbone(checkpoint: Path, folder: Path) -> Path:
    if not folder.exists():
        refseg.load(checkpoint, device="cpu").model.image_encoder.backbone.net.save_pretrained(folder)
    return folder


def changes(row: str) -> Iterator[str]:
    """What the row's recipe changes of the network, as overrides."""
    if row != ROWS[0]:
        recipe = yaml.safe_load((RECIPES / "unc" / f"{row}.yaml").read_text())
        for name, value in recipe.get("model", {}).items():
            yield f"model.{name}={value}"
        if "word_vectors" in recipe:
            yield "sentences=[]"


def report_of(folder: Path, row: str, seed: int) -> Path:
    return folder / "reports" / row / f"{seed}.json"


def one(folder: Path, row: str, seed: int, recipe: Path, overrides: list[str], val: Path) -> str:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    start = time.perf_counter()
    output = folder / f"{row}-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    with (folder / f"{row}-{seed}.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        run(recipe, [*overrides, f"training.output={output}", f"training.seed={seed}", "training.workers=0"])
        result = evaluate(refseg.load(output, device="cpu"), read_table(val), model=f"{row}-{seed}", data=val.stem)
    path = report_of(folder, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(result.to_json())
    overall = result.overall
    return f"{row}-{seed}: {overall.overall_iou:.4f} / {overall.mean_iou:.4f} in {time.perf_counter() - start:.0f} s"


if __name__ == "__main__":
    main()
