"""Many clients, good and bad requests mixed, against a server that this script starts on 127.0.0.1.

    python benchmarks/load.py --requests 20000 --clients 32

Checks that every answer belongs to its request (against what the library says), that every bad request gets its
own refusal, that the server's memory stays flat after the warm-up and that it leaks no file descriptor. Prints a
summary as JSON and ends with 1 if a check fails. Needs refseg with the extra `serve`, httpx and psutil.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

PHOTOGRAPHS, KEPT, WARM_UP, SAMPLE = 24, 16, 0.2, 0.5
"""More photographs than the server keeps; the share of requests before memory is judged; seconds."""
NOUNS = ("dog", "cup", "bag", "zebra", "wall")
PLACES = ("", " on the left")


@dataclass
class Expected:
    """What the library says of one photograph."""

    content: bytes
    counts: dict[str, str]
    """Run lengths by expression."""


@dataclass
class Tally:
    """What happened."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    """Requests done, bytes of the server and its model's process (unique memory), open descriptors."""
    done: int = 0
    retries: int = 0


def tiny_model(folder: Path) -> str:
    """A random SHNet for 64-pixel squares: the server's own work is what is measured."""
    import torch

    from refseg.models.interface import TokenBatch
    from refseg.models.shnet import SHNet, SHNetConfig
    from refseg.words import WordTokenizer

    tokenizer = WordTokenizer.from_expressions([f"the {noun}{place}" for noun in NOUNS[:-2] for place in PLACES])
    torch.manual_seed(0)
    config = SHNetConfig(
        backbone_config={"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16},
        image_size=64, grid=4, vocabulary=len(tokenizer), word_size=8, width=16, fusion_layers=1, fusion_heads=2,
        fusion_ffn=16, aspp_rates=(1, 2, 3), decoder_widths=(8, 8, 8),
    )  # fmt: skip
    model = SHNet(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        tokens = tokenizer([f"the {noun}" for noun in NOUNS])
        noise = torch.rand(1, 3, 64, 64)
        logits = model(TokenBatch(tokens.ids, tokens.mask), images=noise).mask_logits
        model.decoder.head.weight /= logits.std()
        model.decoder.head.bias -= logits.median() / logits.std()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def expectations(model: str, rng: np.random.Generator) -> list[Expected]:
    """Computed one by one, without a batch."""
    from refseg.segmenter import load

    segmenter = load(model, device="cpu")
    found = []
    for _ in range(PHOTOGRAPHS):
        content = io.BytesIO()
        size = rng.integers(24, 96, 2)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((int(size[0]), int(size[1]))).save(content, "PNG")
        encoded = segmenter.encode(content.getvalue())
        expressions = [f"the {noun}{place}" for noun in NOUNS for place in PLACES]
        counts = {text: segmenter.segment(encoded, [text])[0].to_rle()["counts"] for text in expressions}
        found.append(Expected(content.getvalue(), counts))
    return found


async def good(client: httpx.AsyncClient, known: list[Expected], rng: random.Random, tally: Tally) -> str:
    photo = rng.choice(known)
    expressions = rng.sample(sorted(photo.counts), rng.randint(1, 3))
    if rng.random() < 0.5:
        response = await client.post(
            "/v1/segment", data={"expressions": expressions}, files={"photo": ("a.png", photo.content)}
        )
    else:
        body = {"photo": base64.b64encode(photo.content).decode(), "expressions": expressions}
        response = await client.post("/v1/segment", json=body)
    if response.status_code == 503:
        tally.retries += 1
        return "503 " + ("with" if "retry-after" in response.headers else "WITHOUT") + " Retry-After"
    if response.status_code != 200:
        tally.wrong.append(f"a good request got {response.status_code}: {response.text[:200]}")
        return str(response.status_code)
    results = [(result["expression"], result["rle"]["counts"]) for result in response.json()["results"]]
    if results != [(text, photo.counts[text]) for text in expressions]:
        tally.wrong.append(f"the answer to {expressions} belongs to another request or differs from the library's")
    return "200"


BAD: list[tuple[int, dict[str, Any]]] = [
    (422, {"data": {"expressions": "the dog"}, "files": {"photo": ("a.png", b"not a photograph")}}),
    (422, {"data": {"expressions": "the dog"}, "files": {"photo": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(200))}}),
    (422, {"json": {"photo": "%%", "expressions": ["the dog"]}}),
    (422, {"json": {"photo": "aGk=", "expressions": []}}),
    (422, {"json": {"photo": "aGk=", "expressions": ["a"] * 1000}}),
    (422, {"json": {"photo": "aGk=", "expressions": ["the dog"], "threshold": 7}}),
    (422, {"content": b"{" * 2000, "headers": {"Content-Type": "application/json"}}),
    (404, {"json": {"photo_id": "0" * 64, "expressions": ["the dog"]}}),
    (415, {"content": b"x", "headers": {"Content-Type": "text/plain"}}),
    (400, {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
]


async def bad(client: httpx.AsyncClient, rng: random.Random, tally: Tally) -> str:
    status, request = rng.choice(BAD)
    response = await client.post("/v1/segment", **request)
    if response.status_code == 503:
        tally.retries += 1
        return "503 " + ("with" if "retry-after" in response.headers else "WITHOUT") + " Retry-After"
    if response.status_code != status or response.headers["content-type"] != "application/problem+json":
        tally.wrong.append(f"a bad request got {response.status_code} and not {status}: {response.text[:200]}")
    return str(response.status_code)


async def hang_up(port: int) -> str:
    """A client that leaves in the middle of its request."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\n")
    writer.write(b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
    await writer.drain()
    writer.close()
    return "gone"


async def take_requests(
    address: str, known: list[Expected], seed: int, work: Iterator[int], tally: Tally, stop: float
) -> None:
    """Takes one request after the other from the work that all clients share."""
    rng = random.Random(seed)
    reused = httpx.Limits(keepalive_expiry=2)  # the server closes idle connections after five seconds
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=reused) as client:
        for _ in work:
            if time.monotonic() > stop:
                return
            began, draw = time.perf_counter(), rng.random()
            try:
                if draw < 0.7:
                    outcome = await good(client, known, rng, tally)
                    tally.seconds.append(time.perf_counter() - began)
                elif draw < 0.99:
                    outcome = await bad(client, rng, tally)
                else:
                    outcome = await hang_up(int(address.rpartition(":")[2]))
            except httpx.TransportError as fault:
                outcome = type(fault).__name__
                tally.wrong.append(f"a request got no answer: {fault!r}")
            tally.statuses[outcome] += 1
            tally.done += 1


async def watch(processes: list[psutil.Process], tally: Tally) -> None:
    while True:
        memory = sum(process.memory_full_info().uss for process in processes)
        tally.memory.append((tally.done, memory, sum(process.num_fds() for process in processes)))
        await asyncio.sleep(SAMPLE)


async def run(address: str, known: list[Expected], options: argparse.Namespace) -> Tally:
    tally = Tally()
    work = iter(range(options.requests))
    model = httpx.get(f"{address}/v1/models").json()["models"][0]["process"]
    server = psutil.Process(psutil.Process(model).ppid())
    watching = asyncio.create_task(watch([server, psutil.Process(model)], tally))
    stop = time.monotonic() + options.minutes * 60
    await asyncio.gather(*(take_requests(address, known, n, work, tally, stop) for n in range(options.clients)))
    watching.cancel()
    await asyncio.sleep(6)  # idle connections are closed after five seconds
    processes = [server, psutil.Process(model)]
    memory = sum(process.memory_full_info().uss for process in processes)
    tally.memory.append((tally.done, memory, sum(process.num_fds() for process in processes)))
    return tally


def summary(tally: Tally, before: int, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    warm = [memory for done, memory, _ in tally.memory[:-1] if done >= WARM_UP * options.requests]
    tenth = max(1, len(warm) // 10)
    first, last = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
    quantiles = statistics.quantiles(tally.seconds, n=100)
    report = {
        "requests": tally.done,
        "clients": options.clients,
        "model": options.model,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "seconds": round(seconds, 1),
        "requests_per_second": round(tally.done / seconds, 1),
        "good_request_seconds": {"median": round(quantiles[49], 3), "99%": round(quantiles[98], 3)},
        "outcomes": dict(sorted(tally.statuses.items())),
        "wrong": len(tally.wrong),
        "wrong_examples": tally.wrong[:5],
        "memory_mb_after_warm_up": round(first / 1e6, 1),
        "memory_mb_at_the_end": round(last / 1e6, 1),
        "memory_growth": round(last / first - 1, 4),
        "descriptors_before": before,
        "descriptors_most": max(descriptors for _, _, descriptors in tally.memory),
        "descriptors_after": tally.memory[-1][2],
    }
    report["passed"] = (
        tally.done == options.requests
        and not tally.wrong
        and report["memory_growth"] <= 0.05
        and report["descriptors_after"] <= before
        and not any("WITHOUT" in outcome for outcome in tally.statuses)
    )
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=15, help="stop after so long at the latest")
    parser.add_argument("--model", default="tiny", help="tiny (random weights), shipped, or a folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended as well
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder)) if options.model == "tiny" else options.model
        known = expectations(model, np.random.default_rng(0))
        command = [sys.executable, "-m", "refseg", "serve", "--model", model, "--port", "0", "--device", "cpu"]
        environment = {**os.environ, "REFSEG_CACHED_PHOTOS": str(KEPT)}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            address = server.stdout.readline().strip() if server.stdout else ""
            while httpx.get(f"{address}/readyz").status_code != 200:
                time.sleep(0.2)
            model_process = psutil.Process(httpx.get(f"{address}/v1/models").json()["models"][0]["process"])
            time.sleep(6)
            before = model_process.num_fds() + psutil.Process(model_process.ppid()).num_fds()
            began = time.perf_counter()
            tally = asyncio.run(run(address, known, options))
            report = summary(tally, before, time.perf_counter() - began - 6, options)
        finally:
            server.terminate()
            server.wait(60)
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
