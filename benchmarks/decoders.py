"""What the decoder's widths are worth in IoU: several decoders learn side by side on one frozen network's maps.

    python benchmarks/decoders.py shipped --train ../shared/data/photos-fashion/train/instances.json \
        --val ../shared/data/photos-fashion/val/instances.json --name photos --steps 300 --photos 2
    python benchmarks/decoders.py runs/scenes --train scenes:3000 --val scenes:200:1 --name scenes

Everything before the decoder stays as it was trained, so that the decoders see the same maps in the same order and
differ in nothing but their widths: (C, C, C/2), the released code's in proportion, and the default's (C/2, C/4, C/8).
Writes results/decoders-NAME.csv.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import refseg
from refseg.data.sources import load_rows
from refseg.data.table import by_photograph
from refseg.evaluation.bench import write_csv
from refseg.evaluation.evaluate import evaluate
from refseg.models.interface import per_expression
from refseg.models.parts.decoder import ASPP, Decoder
from refseg.training.batches import Collate, PhotoDataset, PhotoSampler
from refseg.training.losses import mask_loss
from refseg.training.recipe import DataRecipe, Phase, TrainingRecipe


@dataclass(frozen=True)
class Line:
    decoder: str
    widths: str
    overall_iou: float
    mean_iou: float
    expressions: int
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="shipped, or a checkpoint's folder")
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--photos", type=int, default=8, help="photographs a step, with 8 expressions each")
    parser.add_argument("--val-photos", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    segmenter = refseg.load(options.model, device="cpu", engine="torch", threads=1)
    model = segmenter.engine.network
    config = model.config
    c = config.width
    widths = {"released": [c, c, c // 2], "light": [c // 2, c // 4, c // 8]}
    decoders = {name: Decoder(ASPP(c, config.aspp_rates, 0.0), c, own).train() for name, own in widths.items()}
    train(segmenter, decoders, options)
    rows = load_rows(options.val)
    lines = []
    for name, decoder in decoders.items():
        model.decoder = decoder.eval()
        scores = evaluate(segmenter, rows, max_photos=options.val_photos).overall
        lines.append(
            Line(
                name, "-".join(map(str, widths[name])), scores.overall_iou, scores.mean_iou, scores.count, options.steps
            )
        )
        print(lines[-1])
    write_csv(Path(f"results/decoders-{options.name}.csv"), lines)


def train(segmenter: refseg.Segmenter, decoders: dict[str, Decoder], options: argparse.Namespace) -> None:
    """AdamW at 2e-3 falling to zero; cross-entropy and Dice."""
    model = segmenter.engine.network
    photos = list(by_photograph(load_rows(options.train)))
    training = TrainingRecipe("", [Phase(options.steps, options.photos, 8)])
    dataset = PhotoDataset(photos, DataRecipe([]), training, model.config)
    sampler = PhotoSampler(dataset.parts, training, range(options.steps))
    collate = Collate(segmenter.tokenizer, 0.0)
    optimizer = torch.optim.AdamW(nn.ModuleDict(decoders).parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps)
    for keys in tqdm(sampler, total=options.steps, unit="step"):
        batch = collate([dataset[key] for key in keys])
        with torch.no_grad():
            words = model.text_encoder(batch["ids"], batch["mask"])
            count = len(batch["ids"])
            levels = [per_expression(level, batch["photo_of"], count) for level in model.encode(batch["images"])]
            fused = [model.fusion(level, words, batch["mask"]) for level in levels]
            joint = model.aggregation(fused, batch["mask"])
        loss = sum(mask_loss(decoder(joint), batch["targets"], 1.0) for decoder in decoders.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


if __name__ == "__main__":
    main()
