"""What an answer and a training step cost, as ratios in one run: `refseg bench`.

Machines drift; so the cases of a table run in turn, A B C A B C …, and each one's median is set beside the first's.
docs/speed.md holds the results and the commands.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from refseg.engines.fast import fastest_form
from refseg.engines.packed import Linear, packs
from refseg.errors import RefsegError
from refseg.models.interface import Prediction, TokenBatch
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.models.shnet.aggregation import HCAM, Affinity
from refseg.segmenter import Network, Segmenter, load
from refseg.training.losses import mask_loss
from refseg.training.trainer import computes_in_bf16, lay_channels_last

log = logging.getLogger(__name__)

RELEASED_WIDTHS = (512, 512, 256)
"""Channels of the up-sampling convolutions in the code that SHNet's authors released."""
PER_PHOTO = 7
"""Expressions of a training photograph; UNC has 7.1."""
WORDS = 5


@dataclass(frozen=True)
class Line:
    """One case of a table."""

    table: str
    case: str
    seconds: float
    """Median, for one expression (or one answer) of the case."""
    ratio: float
    """How many times as fast as the table's first case."""
    gflop: float | None = None
    """Products and sums that PyTorch counted for one expression, in 10⁹; None where it did not compute."""
    peak_share: float | None = None
    """Arithmetic per second as a share of what a 1024³ product by oneDNN reaches in the same run."""


@dataclass(frozen=True)
class Case:
    """What is timed, and by how many expressions its time is divided."""

    run: Callable[[], Any]
    per: int = 1
    counted: bool = True
    """Whether PyTorch computes, and can count its arithmetic."""


def measure(table: str, cases: dict[str, Case], rounds: int) -> list[Line]:
    """Runs the cases in turn; the first is what the others are compared with."""
    flops = {name: _gflop(case) for name, case in cases.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    matrix = torch.randn(1024, 1024)
    product = Linear(matrix)
    peaks: list[float] = []
    for _ in tqdm(range(rounds), desc=table, unit="round", disable=None):
        peaks.append(2 * 1024**3 / _seconds(lambda: product(matrix)))
        for name, case in cases.items():
            seconds[name].append(_seconds(case.run) / case.per)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    first, peak = next(iter(medians.values())), max(peaks) / 1e9
    return [
        Line(table, name, median, first / median, flops[name], _share(flops[name], median, peak))
        for name, median in medians.items()
    ]


def _share(gflop: float | None, seconds: float, peak: float) -> float | None:
    return None if gflop is None else gflop / seconds / peak


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gflop(case: Case) -> float | None:
    if not case.counted:
        case.run()
        return None
    with FlopCounterMode(display=False, custom_mapping=_packed_flops()) as counter:
        case.run()
    return counter.get_total_flops() / 1e9 / case.per


def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _conv_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])  # of a depthwise kernel weight[1] is 1


def _packed_flops() -> dict[Any, Callable[..., int]]:
    """What PyTorch's counter does not know of: the operators of `engines.packed`, where there are any."""
    if not packs(torch.float32):
        return {}
    operators = torch.ops.mkldnn
    return {operators._linear_pointwise: _linear_flops, operators._convolution_pointwise: _conv_flops}


class TiledAffinity(Affinity):
    """HCAM's affinity as equation 2 is written: one convolution over [pixels; tiled sentence] per sentence."""

    def forward(self, pixels: Tensor, sentences: list[Tensor]) -> list[Tensor]:
        tiled = (sentence[:, :, None, None].expand_as(pixels) for sentence in sentences)
        joined = (torch.cat([pixels, sentence], dim=1) for sentence in tiled)
        return [self.dropout(self.norm(self.conv(both))).sigmoid() for both in joined]


def plain_form(model: SHNet) -> SHNet:
    """The network without any of our algebra, in place: what a straightforward reading of the paper computes."""
    if isinstance(model.aggregation, HCAM):
        for affinity in model.aggregation.gates:
            affinity.__class__ = TiledAffinity
    return model


def paper_network(**changes: Any) -> SHNet:
    """The paper's network with random weights, for its speed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SHNet(SHNetConfig.paper(**changes)).eval()


def sentences(count: int) -> TokenBatch:
    """`count` expressions of WORDS words each."""
    ids = torch.arange(count * WORDS).view(count, WORDS) % 50 + 2
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


@torch.inference_mode()
def inference(rounds: int, engines: Sequence[str] = ("torch",)) -> list[Line]:
    """First answers and further ones: the paper's network plain and fast, the shipped model, CLIPSeg."""
    plain = plain_form(paper_network(decoder_widths=RELEASED_WIDTHS))
    image = torch.rand(1, 3, 320, 320)
    one, eight = sentences(1), sentences(8)
    cases = {"paper's network, plain: one expression": Case(lambda: plain(one, images=image))}
    for name, changes in (("released decoder", {"decoder_widths": RELEASED_WIDTHS}), ("light decoder", {})):
        fast = fastest_form(paper_network(**changes))
        label = f"paper's network, fast, {name}"
        cases[f"{label}: one expression"] = Case(partial(fast, one, images=image))
        cases[f"{label}: each of 8"] = Case(partial(fast, eight, images=image), 8)
    forms = {engine: load(device="cpu", engine=engine).network for engine in engines}
    if computes_in_bf16():
        cases[f"{label}, bfloat16: each of 8"] = Case(
            torch.autocast("cpu", torch.bfloat16)(partial(fast, eight, images=image)), 8
        )
        forms["torch in bfloat16"] = load(device="cpu", precision="bfloat16").network
    for name, network in forms.items():
        counted = name.startswith("torch")
        features = network.encode(image)
        cases[f"shipped model, {name}: first answer"] = Case(partial(_first, network, image), counted=counted)
        cases[f"shipped model, {name}: a further one"] = Case(partial(network, one, features=features), counted=counted)
    cases |= _clipseg()
    return measure("inference", cases, rounds)


@torch.inference_mode()
def stages(rounds: int) -> list[Line]:
    """Each box of the paper's network for one expression, plain and fast; the released decoder's widths."""
    plain: Any = plain_form(paper_network(decoder_widths=RELEASED_WIDTHS))
    fast = fastest_form(plain)
    image, (ids, mask, _) = torch.rand(1, 3, 320, 320), sentences(1)
    words = plain.text_encoder(ids, mask)
    levels, ahead = plain.encode(image), fast.encode(image)
    fused = [plain.fusion(level, words, mask) for level in levels]
    own = type(ahead)(*(part[0] for part in ahead))
    met = fast.fusion(own, words[0])
    joint, last = plain.aggregation(fused, mask), fast.aggregation(*met)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "image encoder, and SFM's first layer ahead of the words": (
            partial(plain.encode, image),
            partial(fast.encode, image),
        ),
        "text encoder": (partial(plain.text_encoder, ids, mask), partial(fast.text_encoder, ids, mask)),
        "SFM": (
            lambda: [plain.fusion(level, words, mask) for level in levels],
            partial(fast.fusion, own, words[0]),
        ),
        "HCAM": (partial(plain.aggregation, fused, mask), partial(fast.aggregation, *met)),
        "decoder": (partial(plain.decoder, joint), partial(fast.decoder, last)),
    }
    return [
        line
        for stage, (one, other) in pairs.items()
        for line in measure(f"stage: {stage}", {"plain": Case(one), "fast": Case(other)}, rounds)
    ]


def _first(network: Network, image: Tensor) -> Prediction:
    return network(sentences(1), features=network.encode(image))


def _clipseg() -> dict[str, Case]:
    """CLIPSeg (Lüddecke and Ecker, CVPR 2022; ViT-B/16, 352) with random weights: its speed needs no download."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from refseg.models.pretrained import CLIPSeg

    with torch.random.fork_rng(devices=[]):
        net = CLIPSegForImageSegmentation(CLIPSegConfig())
    clipseg = CLIPSeg(net, 352, (IMAGENET_MEAN, IMAGENET_STD)).eval()
    pixels = torch.rand(1, 3, 352, 352)
    ids = torch.arange(WORDS + 2)[None] + 1
    asked = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    encoded = clipseg.encode(pixels)
    return {
        "CLIPSeg: first answer": Case(lambda: clipseg(asked, features=clipseg.encode(pixels))),
        "CLIPSeg: a further one": Case(lambda: clipseg(asked, features=encoded)),
    }


def training(rounds: int) -> list[Line]:
    """A step of the paper's network with its frozen encoder, per expression, at PER_PHOTO expressions a photograph."""
    image = torch.rand(1, 3, 320, 320)
    tokens = sentences(PER_PHOTO)
    targets = torch.zeros(PER_PHOTO, 1, 72, 72)
    targets[:, :, 20:50, 20:50] = 1
    photo_of = torch.zeros(PER_PHOTO, dtype=torch.long)

    def step(model: SHNet, photographs: Mapping[str, Tensor], bf16: bool = False) -> Case:
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(tokens, **photographs).mask_logits
            loss: Any = mask_loss(logits, targets, 0.0)
            loss.backward()
            model.zero_grad()

        return Case(run, PER_PHOTO)

    plain = plain_form(paper_network(decoder_widths=RELEASED_WIDTHS)).train()
    grouped = {"images": image.contiguous(memory_format=torch.channels_last), "photo_of": photo_of}
    released, light = paper_network(decoder_widths=RELEASED_WIDTHS).train(), paper_network().train()
    for network in (released, light):
        lay_channels_last(network)
    cases = {
        "plain: the photograph encoded for each expression": step(plain, {"images": image.repeat(PER_PHOTO, 1, 1, 1)}),
        "grouped, released decoder": step(released, grouped),
        "grouped, light decoder": step(light, grouped),
    }
    if computes_in_bf16():
        cases["grouped, light decoder, bfloat16"] = step(light, grouped, bf16=True)
    return measure("training step", cases, rounds)


@dataclass(frozen=True)
class Growth:
    """How time and memory grow with one quantity of an answer by the shipped model."""

    quantity: str
    value: float
    seconds: float
    """Median, whole answer: reading, encoding, all expressions, masks at full size."""
    memory: float
    """Greatest resident memory during it above that before it, in MiB."""


def growth(rounds: int) -> Iterator[Growth]:
    """Answers of the shipped model against expressions, size and number of photographs."""
    segmenter = load(device="cpu")
    photo = _photograph(0.3)
    segmenter(photo, ["the person"])
    for count in (1, 2, 4, 8, 16, 32, 64):
        asked = [f"the person number {number}" for number in range(count)]
        yield _grown("expressions of a photograph", count, rounds, partial(segmenter, photo, asked))
    for size in (0.1, 0.3, 1, 3, 10, 25, 50):
        run = partial(segmenter, _photograph(size), ["the person"])
        yield _grown("megapixels", size, max(1, rounds // 2), run)
    for count in (1, 10, 100, 1000):
        yield _grown("photographs", count, 1, partial(_many, segmenter, photo, count))


def _many(segmenter: Segmenter, photo: Any, count: int) -> None:
    for _ in range(count):
        segmenter(photo, ["the person"])


def _photograph(megapixels: float) -> Any:
    """Noise of that size as H×W×3 uint8, 4:3."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    return torch.randint(0, 256, (height, round(height * 4 / 3), 3), dtype=torch.uint8).numpy()


def _grown(quantity: str, value: float, rounds: int, run: Callable[[], Any]) -> Growth:
    seconds = []
    with _watched() as memory:
        for _ in range(rounds):
            seconds.append(_seconds(run))
    return Growth(quantity, value, statistics.median(seconds), memory[0])


@contextmanager
def _watched() -> Iterator[list[float]]:
    """The greatest resident memory of this process inside the block above that before it, in MiB."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        raise RefsegError("memory is read from /proc, which this system lacks; run refseg bench on Linux")

    def kilobytes(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    reset.write_text("5")  # resets the peak
    before = kilobytes("VmRSS")
    memory = [0.0]
    yield memory
    memory[0] = (kilobytes("VmHWM") - before) / 1024


def write_csv(path: Path, lines: Sequence[Any], machine: str | None = None) -> None:
    """Writes dataclasses of one kind, a line each; where times are among them, with the machine they are of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        names, last = list(lines[0].__dataclass_fields__), {"machine": machine} if machine else {}
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *last])
        writer.writerows([*(_cell(getattr(line, name)) for name in names), *last.values()] for line in lines)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def machine() -> str:
    """The processor and what of it is used, in a line."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else "unknown processor"
    form = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {form}, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
