"""Throws mutated input at what reads a stranger's bytes; anything but an answer or a RefsegError ends the run.

    nice -n 19 python benchmarks/fuzz.py photo tokenizer table pickle --inputs 100000 --seed 0

Hypothesis draws the inputs and, where one fails, prints the smallest that does. Decoders in C are watched as well:
memory is limited to 6 GB, and a crash leaves a traceback. One line a target goes to results/fuzz.csv.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import io
import json
import pickle
import random
import resource
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.data.published.pickles import read_plain_pickle
from refseg.data.table import Row, read_table
from refseg.errors import RefsegError
from refseg.masks import decode_mask, encode_mask
from refseg.photo import read_photo

RESULTS = Path(__file__).parents[1] / "results" / "fuzz.csv"
MEMORY = 6 << 30
INTERESTING = (b"\0", b"\xff", b"\x7f\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\1\0")
FOLDER = Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir())


def photographs() -> list[bytes]:
    """Small files of every format, mode and compression that is read."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        *(("RGB", format, {}) for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")),
        *(("RGB", format, {"exif": exif}) for format in ("PNG", "JPEG", "WEBP", "TIFF")),
        *(("RGB", format, {"save_all": True, "append_images": [noise]}) for format in ("PNG", "WEBP", "TIFF", "MPO")),
        *(("RGB", "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        *(("1", "TIFF", {"compression": name}) for name in ("group3", "group4")),
        *((mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
        *((mode, "TIFF", {}) for mode in ("1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "F")),
        *((mode, "BMP", {}) for mode in ("1", "L", "P", "RGBA")),
        *(("L", "JPEG", {}), ("CMYK", "JPEG", {}), ("RGB", "JPEG", {"progressive": True})),
        *(("RGBA", "WEBP", {"lossless": True}), ("RGBA", "WEBP", {})),
    ]
    return [saved(noise.convert("L" if mode == "I;16" else mode).convert(mode), *rest) for mode, *rest in wanted]


def saved(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def mutated(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the files with up to eight places changed; at times cut short, or a piece of it moved."""

    def mutate(whole: bytes, draw: random.Random) -> bytes:
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
            place = draw.randrange(min(len(content), draw.choice((32, 200, 1 << 20))))
            piece = draw.choice(
                (*INTERESTING, draw.randbytes(1), draw.randbytes(4), content[place:][: draw.randint(1, 64)])
            )
            kind = draw.randrange(8)
            if kind == 0:
                del content[place : place + draw.randint(1, 64)]
            elif kind == 1:
                content[place:place] = piece
            elif kind == 2:
                content[place] ^= 1 << draw.randrange(8)
            else:
                content[place : place + len(piece)] = piece
            if not content:
                break
        return bytes(content[: draw.randint(1, len(content) + 1)] if draw.random() < 0.1 else content)

    return st.builds(mutate, st.sampled_from(originals), st.randoms(use_true_random=False, note_method_calls=False))


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks say the right checksum again, so that what they hold is looked at."""
    place, repaired = 8, bytearray(content)
    while content.startswith(b"\x89PNG") and place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4])
        if end + 4 <= len(content):
            repaired[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4)
        place = end + 4
    return bytes(repaired)


def fuzz_photo() -> tuple[st.SearchStrategy[Any], Callable[[Any], None]]:
    def check(content: bytes) -> None:
        photo = read_photo(content)
        assert photo.mode == "RGB" and photo.width and photo.height

    return mutated(photographs()).map(with_checksums), check


def fuzz_tokenizer() -> tuple[st.SearchStrategy[Any], Callable[[Any], None]]:
    from refseg.words import MAX_CHARACTERS, WordTokenizer, clean_expression

    tokenizer = WordTokenizer.from_expressions(["the red bag on the left", "a blue cup", "the dog's ball, café"])
    known = set(tokenizer.vocabulary.values())

    def check(text: str) -> None:
        cleaned = clean_expression(text)
        assert clean_expression(cleaned) == cleaned and cleaned.isspace() is False
        tokens = tokenizer([cleaned, "the dog"])
        assert tokens.ids.shape == tokens.mask.shape and tokens.ids.shape[1] <= 25
        assert set(tokens.ids.flatten().tolist()) <= known and bool(tokens.mask[:, 0].all())
        assert tokens.ids[0][tokens.mask[0]].tolist() == tokenizer([cleaned]).ids[0].tolist()

    anything = st.text(st.characters(exclude_categories=()), max_size=60)
    words = st.lists(
        st.sampled_from(["the", "dog", "‮", "é", "e\u0301", "👩‍🚀", "\0", "’", "<unk>", "ﷺ", "\ud83d"]) | anything
    )
    return anything | words.map(" ".join) | st.text(max_size=3).map(lambda text: text * (MAX_CHARACTERS // 2)), check


def fuzz_table() -> tuple[st.SearchStrategy[Any], Callable[[Any], None]]:
    """Masks there and back, crafted run lengths, and lines of a table with one of their values replaced."""
    file = FOLDER / f"refseg-fuzz-{random.SystemRandom().getrandbits(40)}.jsonl"
    good = {"image": "a.png", "image_id": 1, "height": 4, "width": 6, "expression": "dog", "counts": "44d0"}
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=4,
    )
    side = st.integers(0, 12)
    counts = st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12) | st.text(max_size=6)
    masks = st.tuples(st.just("mask"), side, side, st.integers(0, 2**64))
    runs = st.tuples(st.just("runs"), side | st.integers(-(2**40), 2**40), side | st.integers(0, 2**33), counts)
    lines = st.builds(
        lambda key, new: json.dumps({**good, key: new}).encode("utf-8", "surrogatepass"),
        st.sampled_from([*good, "split", "segment_ids", "label", "colour"]), value,
    )  # fmt: skip
    raw = mutated([json.dumps(good).encode()]) | st.binary(max_size=40)

    def check(drawn: Any) -> None:
        if isinstance(drawn, bytes):
            file.write_bytes(drawn)
            for row in read_table(file):
                assert row.mask().shape == (row.height, row.width)
            return
        kind, height, width, content = drawn
        if kind == "mask":
            mask = np.random.default_rng(content).random((height, width)) < (content % 7) / 6
            assert encode_mask(mask) == coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
            assert (decode_mask(encode_mask(mask), height, width) == mask).all()
        else:
            mask = Row(Path("a.png"), 1, height, width, "dog", content).mask()
            assert (decode_mask(encode_mask(mask), height, width) == mask).all()

    return masks | runs | lines | raw, check


def fuzz_pickle() -> tuple[st.SearchStrategy[Any], Callable[[Any], None]]:
    file = FOLDER / f"refseg-fuzz-{random.SystemRandom().getrandbits(40)}.p"
    plain = {
        "sent_ids": [0, 1],
        "file_name": "a_1.jpg",
        "split": "train",
        "box": (1, 2.5),
        7: {"raw": "é", "none": None},
    }
    hostile = [random.Random, print, range(3), b"x", 2**70, {1, 2}, frozenset({3}), np.arange(3)]
    originals = [pickle.dumps(value, n) for value in (plain, [plain, plain], *hostile) for n in range(6)]

    def check(content: bytes) -> None:
        file.write_bytes(content)
        pickle.dumps(read_plain_pickle(file))

    return mutated(originals), check


TARGETS = {"photo": fuzz_photo, "tokenizer": fuzz_tokenizer, "table": fuzz_table, "pickle": fuzz_pickle}


def run(name: str, inputs: int, start: int) -> dict[str, Any]:
    strategy, check = TARGETS[name]()
    outcomes: Counter[str] = Counter()
    slowest = 0.0

    @seed(start)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def examine(drawn: Any) -> None:
        nonlocal slowest
        began = time.process_time()
        try:
            check(drawn)
            outcomes["answered"] += 1
        except RefsegError as fault:
            assert str(fault).isprintable(), str(fault)
            outcomes["refused"] += 1
        slowest = max(slowest, time.process_time() - began)

    began = time.process_time()
    examine()
    seconds = time.process_time() - began
    return {
        "target": name,
        "inputs": outcomes.total(),
        **{outcome: outcomes[outcome] for outcome in ("answered", "refused")},
        "other": 0,
        "slowest_s": round(slowest, 3),
        "processor_s": round(seconds),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "seed": start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="by default all")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    for name in arguments.targets or TARGETS:
        found = run(name, arguments.inputs, arguments.seed)
        print(json.dumps(found), flush=True)
        new = not arguments.out.exists()
        with arguments.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, found)
            if new:
                writer.writeheader()
            writer.writerow(found)


if __name__ == "__main__":
    sys.exit(main())
