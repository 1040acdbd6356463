"""What each engine and precision costs in IoU and gains in speed, on photographs; writes results/engines.csv.

    python benchmarks/engines.py --photos 50 --data ../shared/data/photos-fashion/val/instances.json \
        --data ../shared/data/photos-coco/val/instances.json --calibrate ../shared/data/photos-fashion/train/images

int8 takes its ranges from the photographs of --calibrate. A bfloat16 row on a processor without bfloat16 instructions
shows the loss of IoU alone: there it is emulated, and slow. Speed is that of further expressions about one photograph,
the engines in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import refseg
from refseg.data.sources import load_rows
from refseg.evaluation.bench import machine, write_csv
from refseg.evaluation.evaluate import evaluate
from refseg.words import Tokens

ENGINES = (
    ("onnx", "float32"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "int8"),
)


@dataclass(frozen=True)
class Line:
    engine: str
    precision: str
    overall_iou: float
    mean_iou: float
    encode_ms: float
    answer_ms: float
    expressions: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="append", required=True, help="instances.json or a table; may be repeated")
    parser.add_argument("--photos", type=int, default=50, help="so many photographs, evenly spread")
    parser.add_argument("--calibrate", type=Path, required=True, help="a folder of photographs for int8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = [row for spec in options.data for row in load_rows(spec)]
    photos = sorted(options.calibrate.glob("*.jpg"))[::10][:60]
    segmenters = {
        (engine, precision): refseg.load(
            device="cpu",
            engine=engine,
            precision=precision,
            threads=options.threads,
            calibrate_on=photos if precision == "int8" else (),
        )
        for engine, precision in ENGINES
    }
    speed = timed(segmenters)
    lines = []
    for (engine, precision), segmenter in segmenters.items():
        scores = evaluate(segmenter, rows, max_photos=options.photos).overall
        encode, answer = speed[engine, precision]
        lines.append(Line(engine, precision, scores.overall_iou, scores.mean_iou, encode, answer, scores.count))
        print(lines[-1])
    write_csv(Path("results/engines.csv"), lines, machine())


def timed(segmenters: dict[tuple[str, str], refseg.Segmenter]) -> dict[tuple[str, str], list[float]]:
    """Medians of 9 rounds in which the engines take turns: milliseconds to encode and to answer."""
    spent: dict[tuple[str, str], list[list[float]]] = {name: [[], []] for name in segmenters}
    side = next(iter(segmenters.values())).image_size
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    tokens = Tokens(np.array([[2, 3, 4, 5]]), np.ones((1, 4), dtype=np.bool_), [()], [False])
    for _ in range(10):
        for name, segmenter in segmenters.items():
            start = time.perf_counter()
            features = segmenter.engine.encode(image)
            between = time.perf_counter()
            segmenter.engine.answer(tokens, features)
            spent[name][0].append(1000 * (between - start))
            spent[name][1].append(1000 * (time.perf_counter() - between))
    return {name: [statistics.median(values[1:]) for values in own] for name, own in spent.items()}


if __name__ == "__main__":
    main()
