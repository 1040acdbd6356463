"""What the inference form's pieces cost in each of their forms: the prices by which `Conv` chooses, docs/speed.md.

    python benchmarks/products.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/products.py --name products-avx2

Forms take turns, as in `refseg bench`; the first of each table is PyTorch's own call. One thread. Writes
results/NAME.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from refseg.engines.convolutions import ConvThenUpsample, UpsampleThenConv, Winograd
from refseg.engines.packed import LEAKY, DirectConv, Geometry, Linear, attention
from refseg.evaluation.bench import Case, Line, machine, measure, write_csv

LINEAR = ((324, 512, 512), (400, 128, 128), (25600, 96, 24))
"""Rows, channels in and out."""
CONVOLUTIONS = ((512, 18, 1), (512, 18, 6), (512, 18, 12), (256, 20, 1), (128, 20, 1), (128, 20, 6), (64, 80, 1))
"""Channels, side, dilation."""
UPSAMPLED = ((512, 256, 18), (128, 64, 20), (64, 32, 40))
"""Channels in and out, side of the small map."""
ATTENTION = ((12, 405, 32), (24, 329, 64))
"""Heads of three levels, tokens, channels of a head."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--name", default="products")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines: list[Line] = []
    with torch.inference_mode():
        for table, cases in tables():
            lines += measure(table, cases, options.rounds)
            print(table, *(f"{line.case} {line.seconds * 1000:.2f}" for line in lines[-len(cases) :]), sep=" | ")
    write_csv(Path(f"results/{options.name}.csv"), lines, machine())


def tables() -> Iterator[tuple[str, dict[str, Case]]]:
    for rows, inputs, outputs in LINEAR:
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        own, packed = partial(F.linear, x, weight), Linear(weight)
        yield f"product {rows} x {inputs} x {outputs}", {"own": Case(own), "packed": Case(partial(packed, x))}
    for channels, side, dilation in CONVOLUTIONS:
        x, weight, bias = torch.randn(1, side, side, channels), kernel(channels, channels), torch.zeros(channels)
        own = partial(F.conv2d, x.permute(0, 3, 1, 2), weight, bias, padding=dilation, dilation=dilation)
        direct = DirectConv(weight, bias, Geometry(dilation, 1, dilation))
        tiled = {tile: Winograd(weight, bias, dilation, tile) for tile in (2, 3, 4)}
        forms = {"packed": direct} | {f"Winograd, tile {tile}": form for tile, form in tiled.items()}
        cases = {"own": Case(own)} | {name: Case(partial(form, x)) for name, form in forms.items()}
        yield f"3x3, {channels} channels, side {side}, dilation {dilation}", cases
    for inputs, outputs, side in UPSAMPLED:
        x, weight, bias = torch.randn(1, side, side, inputs), kernel(inputs, outputs), torch.zeros(outputs)
        orders = {form.__name__: form(weight, bias, LEAKY) for form in (UpsampleThenConv, ConvThenUpsample)}
        cases = {name: Case(partial(form, x)) for name, form in orders.items()}
        yield f"up-sampling, {inputs} to {outputs} channels, side {side}", cases
    for heads, tokens, channels in ATTENTION:
        parts = [torch.randn(1, heads, tokens, channels) for _ in range(3)]
        cases = {
            "own": Case(partial(F.scaled_dot_product_attention, *parts)),
            "inference form's": Case(partial(attention, *parts)),
        }
        yield f"attention, {heads} heads, {tokens} tokens, {channels} channels", cases


def kernel(inputs: int, outputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, 3, 3)


if __name__ == "__main__":
    main()
