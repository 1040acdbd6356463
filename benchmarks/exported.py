"""What an export costs in IoU: its masks beside those of PyTorch, and both beside the ground truth.

    refseg export --out exported
    python benchmarks/exported.py exported --photos 24 --data ../shared/data/photos-fashion/val/instances.json \
        --data ../shared/data/photos-coco/val/instances.json

Of each photograph the first expressions are asked. Every expression counts once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import refseg
from refseg.checkpoints import DECODER, ENCODER
from refseg.data.sources import load_rows
from refseg.data.table import by_photograph
from refseg.engines.onnx import OnnxEngine
from refseg.evaluation.protocols import count_pixels
from refseg.evaluation.scores import Scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=Path, nargs="+", help="folders that refseg export wrote")
    parser.add_argument("--data", action="append", required=True, help="instances.json or a table; may be repeated")
    parser.add_argument("--photos", type=int, default=24, help="so many photographs, evenly spread")
    parser.add_argument("--expressions", type=int, default=8, help="so many expressions of each")
    parser.add_argument("--model", default=None, help="the model that was exported; by default the shipped one")
    options = parser.parse_args()
    plain = refseg.load(options.model, device="cpu", engine="torch", threads=1)
    forms = {"torch": plain}
    for folder in options.exported:
        engine = OnnxEngine(folder / ENCODER, folder / DECODER, None, None, 1)
        forms[str(folder)] = refseg.Segmenter(engine, plain.tokenizer, plain.settings)
    photographs = list(by_photograph([row for spec in options.data for row in load_rows(spec)]))
    chosen = [photographs[k * len(photographs) // options.photos] for k in range(options.photos)]
    scores = {name: Scores() for name in forms}
    agreement: dict[str, list[float]] = {name: [] for name in forms}
    seconds = dict.fromkeys(forms, 0.0)
    for rows in chosen:
        asked = rows[: options.expressions]
        found = {}
        for name, form in forms.items():
            start = time.perf_counter()
            found[name] = form(asked[0].image, [row.expression for row in asked])
            seconds[name] += time.perf_counter() - start
        for number, row in enumerate(asked):
            for name in forms:
                mask, reference = found[name][number].mask, found["torch"][number].mask
                scores[name].pixels.append(count_pixels(mask, row.mask()))
                union = (mask | reference).sum()
                agreement[name].append(float((mask & reference).sum() / union) if union else 1.0)
    print(f"{options.photos} photographs, {len(agreement['torch'])} expressions")
    for name, own in agreement.items():
        print(
            f"{name}: IoU with torch's masks mean {np.mean(own):.5f}, least {min(own):.5f}; overall IoU "
            f"{100 * scores[name].overall_iou:.2f}, mean IoU {100 * scores[name].mean_iou:.2f}; {seconds[name]:.0f} s"
        )


if __name__ == "__main__":
    main()
