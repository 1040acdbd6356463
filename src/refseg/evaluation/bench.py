"""What an answer and a training step cost, as ratios in one run: `refseg bench`.

A machine's speed drifts. So the cases of a table take turns, A B C A B C …, and each median is compared with the
first case's. docs/speed.md has the results and the commands.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from refseg.checkpoints import find_checkpoint
from refseg.engines.interface import Answers, Engine, Floats
from refseg.engines.onnx import OnnxEngine
from refseg.engines.threads import available_threads
from refseg.engines.torch import TorchEngine
from refseg.engines.tracing import embed, trace
from refseg.errors import RefsegError
from refseg.models.graphs import Graph
from refseg.models.interface import TokenBatch
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.pretrained import CLIPSeg
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.models.shnet.aggregation import HCAM, Affinity
from refseg.segmenter import Segmenter, load
from refseg.training.losses import mask_loss
from refseg.training.trainer import computes_in_bf16, lay_channels_last
from refseg.words import Tokens, WordTokenizer

RELEASED_WIDTHS = (512, 512, 256)
"""Channels of the up-sampling convolutions in the code that SHNet's authors released."""
PER_PHOTO = 7
"""Expressions of a training photograph. UNC has 7.1."""
WORDS = 5


@dataclass(frozen=True)
class Line:
    """One case of a table."""

    table: str
    case: str
    seconds: float
    """Median time, for one expression (or one answer) of the case."""
    ratio: float
    """How many times as fast as the table's first case."""
    gflop: float | None = None
    """Products and sums that PyTorch counted for one expression, in 10⁹. None if PyTorch did not compute."""


@dataclass(frozen=True)
class Case:
    """What is timed, and the number of expressions that its time is divided by."""

    run: Callable[[], Any]
    per: int = 1
    counted: bool = True
    """Whether PyTorch computes, and can count its arithmetic."""


def measure(table: str, cases: dict[str, Case], rounds: int) -> list[Line]:
    """Runs the cases in turn. The others are compared with the first."""
    flops = {name: _gflop(case) for name, case in cases.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in tqdm(range(rounds), desc=table, unit="round", disable=None):
        for name, case in cases.items():
            seconds[name].append(_seconds(case.run) / case.per)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    return [Line(table, name, median, first / median, flops[name]) for name, median in medians.items()]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gflop(case: Case) -> float | None:
    if not case.counted:
        case.run()
        return None
    with FlopCounterMode(display=False) as counter:
        case.run()
    return counter.get_total_flops() / 1e9 / case.per


class TiledAffinity(Affinity):
    """HCAM's affinity as in equation 2: one convolution over [pixels; tiled sentence] per sentence."""

    def forward(self, pixels: Tensor, sentences: list[Tensor]) -> list[Tensor]:
        tiled = (sentence[:, :, None, None].expand_as(pixels) for sentence in sentences)
        joined = (torch.cat([pixels, sentence], dim=1) for sentence in tiled)
        return [self.dropout(self.norm(self.conv(both))).sigmoid() for both in joined]


def plain_form(model: SHNet) -> SHNet:
    """Changes the network, in place, to compute what a direct reading of the paper computes, without our algebra."""
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
def inference(rounds: int, threads: int, openvino: bool = False) -> list[Line]:
    """First answers and further ones: the paper's network plain and by the engines, the shipped model, CLIPSeg."""
    plain = plain_form(paper_network(decoder_widths=RELEASED_WIDTHS))
    image = torch.rand(1, 3, 320, 320)
    cases = {"paper's network, plain: one expression": Case(lambda: plain(sentences(1), images=image))}
    with tempfile.TemporaryDirectory() as scratch:
        for name, changes in (("released decoder", {"decoder_widths": RELEASED_WIDTHS}), ("light decoder", {})):
            network = paper_network(**changes)
            label = f"paper's network, {name}"
            cases |= _of_eight(f"{label}, onnx", _as_checkpoint(network, Path(scratch) / name, threads))
            cases |= _of_eight(f"{label}, torch", TorchEngine(network))
        if computes_in_bf16():
            cases |= _of_eight(f"{label}, torch in bfloat16", TorchEngine(network, precision="bfloat16"))
        cases |= _of_clipseg(Path(scratch), threads)
    names = ["onnx", "torch", *(["openvino"] if openvino else [])]
    models = {f"shipped model, {name}": load(device="cpu", engine=name, threads=threads) for name in names}
    if computes_in_bf16():
        models["shipped model, torch in bfloat16"] = load(device="cpu", precision="bfloat16", threads=threads)
    models["variant street, onnx"] = load("street", device="cpu", threads=threads)
    for name, segmenter in models.items():
        cases |= _of_photo(name, segmenter.engine, segmenter.image_size)
    return measure("inference", cases, rounds)


def _of_photo(label: str, engine: Engine, side: int = 320, words: int = WORDS) -> dict[str, Case]:
    """An engine's first answer about a photograph, and a further one."""
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    features, counted = engine.encode(image), isinstance(engine, TorchEngine)
    return {
        f"{label}: first answer": Case(lambda: _ask(engine, engine.encode(image), 1, words), counted=counted),
        f"{label}: a further one": Case(lambda: _ask(engine, features, 1, words), counted=counted),
    }


def _of_eight(label: str, engine: Engine) -> dict[str, Case]:
    """One expression about a photograph, and each of eight."""
    image = np.random.default_rng(0).random((1, 3, 320, 320), dtype=np.float32)
    counted = isinstance(engine, TorchEngine)
    return {
        f"{label}: one expression": Case(lambda: _ask(engine, engine.encode(image), 1), counted=counted),
        f"{label}: each of 8": Case(lambda: _ask(engine, engine.encode(image), 8), 8, counted),
    }


def _ask(engine: Engine, features: Any, count: int, words: int = WORDS) -> Answers:
    ids = np.arange(count * words).reshape(count, words) % 50 + 2
    return engine.answer(Tokens(ids, np.ones_like(ids, dtype=np.bool_), [()] * count, [False] * count), features)


def _as_checkpoint(network: SHNet, folder: Path, threads: int) -> OnnxEngine:
    """The network as it answers once it is saved."""
    network.save_pretrained(folder)
    WordTokenizer.from_expressions([]).save_pretrained(folder)
    return OnnxEngine.of(find_checkpoint(folder), threads)


class _CLIPSegEncoder(Graph):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.network.encode(images)


class _CLIPSegDecoder(Graph):
    def forward(self, ids: Tensor, *features: Tensor) -> Tensor:
        tokens = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        return self.network(tokens, features=features).mask_logits


def _of_clipseg(scratch: Path, threads: int) -> dict[str, Case]:
    """CLIPSeg (Lüddecke and Ecker, CVPR 2022; ViT-B/16, 352) with random weights, so that nothing is downloaded."""
    import onnx_ir as ir
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    with torch.random.fork_rng(devices=[]):
        network = CLIPSeg(CLIPSegForImageSegmentation(CLIPSegConfig()), 352, (IMAGENET_MEAN, IMAGENET_STD)).eval()
    image, ids = torch.rand(1, 3, 352, 352), torch.arange(WORDS + 2)[None] + 1
    features = network.encode(image)
    names = [f"feature_{number}" for number in range(len(features))]
    graphs = {
        "encoder": trace(_CLIPSegEncoder(network), (image,), ["images"], names),
        "decoder": trace(_CLIPSegDecoder(network), (ids, *features), ["ids", *names], ["mask_logits"]),
    }
    for name, model in graphs.items():
        embed(model, network.state_dict())
        ir.save(model, scratch / f"{name}.onnx")
    onnx = OnnxEngine(scratch / "encoder.onnx", scratch / "decoder.onnx", None, None, threads)
    return {
        **_of_photo("CLIPSeg, onnx", onnx, 352, WORDS + 2),
        **_of_photo("CLIPSeg, torch", TorchEngine(network), 352, WORDS + 2),
    }


@dataclass(frozen=True)
class Busy:
    """First answers of the shipped model, on idle processors and next to one busy process per processor."""

    engine: str
    threads: int
    idle: float
    """Seconds, median."""
    busy: float
    """Seconds, median."""
    worst: float
    """Seconds of the slowest answer next to busy processes."""
    ratio: float
    """`busy` divided by `idle`."""


def busy(rounds: int) -> list[Busy]:
    """The engines with one thread and with their default, in turn, first idle and then next to busy processes."""
    counts = sorted({1, available_threads()}, reverse=True)
    engines = [(name, count) for name in ("onnx", "torch") for count in counts]
    loaded = {key: load(device="cpu", engine=key[0], threads=key[1]) for key in engines}
    side = next(iter(loaded.values())).image_size
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    times: dict[bool, dict[tuple[str, int], list[float]]] = {False: {}, True: {}}
    for beside in (False, True):
        with ExitStack() as stack:
            for _ in range(available_threads() if beside else 0):
                process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(process.kill)
            for _ in range(1 + rounds):  # the first round warms up
                for (name, count), segmenter in loaded.items():
                    if name == "torch":
                        torch.set_num_threads(count)
                    seconds = _seconds(partial(_first, segmenter.engine, image))
                    times[beside].setdefault((name, count), []).append(seconds)
    lines = []
    for name, count in engines:
        idle, loud = times[False][name, count][1:], times[True][name, count][1:]
        quiet, slow = statistics.median(idle), statistics.median(loud)
        lines.append(Busy(name, count, quiet, slow, max(loud), slow / quiet))
    return lines


def _first(engine: Engine, image: Floats) -> Answers:
    return _ask(engine, engine.encode(image), 1)


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
    """Median time of a whole answer: reading, encoding, all expressions, masks at full size."""
    memory: float
    """How far the resident memory rises during the answer, in MiB."""


def growth(rounds: int, threads: int) -> Iterator[Growth]:
    """Measures answers of the shipped model by the number of expressions, pixels and photographs."""
    segmenter = load(device="cpu", threads=threads)
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
    """Noise of that size, H×W×3 uint8, 4:3."""
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
    """How far the resident memory of this process rises inside the block, in MiB."""
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
    """Writes dataclasses of one kind, one per line. Lines with times also name the machine."""
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
    """The processor and the part of it that is used, in one line."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else "unknown processor"
    form = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {os.cpu_count()} cores, {form}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
