"""What stands in a checkpoint's folder: one row a case, with words of the sentence that refuses it."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS, WORDS = "config.json", "model.safetensors", "tokenizer.json"
Damage = Callable[[Path], Any]


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def becomes(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def without(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**values, **changes}))

    return damage


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / WORDS).read_text())
        change(values)
        (folder / WORDS).write_text(json.dumps(values))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        values = load_file(folder / WEIGHTS)
        change(values)
        save_file(values, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save({"decoder.head.bias": torch.zeros(1)}, content)
    return content.getvalue()


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled())


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    **{f"lacks {name}": (without(name), name) for name in (CONFIG, WEIGHTS, WORDS)},
    **{
        f"{name} is {what}": (becomes(name, content), "checkpoint")
        for name in (CONFIG, WEIGHTS, WORDS)
        for what, content in {"empty": b"", "a list": b"[]", "no UTF-8": b"\xff\xfe", "deep": b"[" * 100_000}.items()
    },
    **{
        f"{name} cut to {share:.0%}": (cut(name, share), "checkpoint")
        for name in (CONFIG, WORDS)
        for share in (0.5, 0.98)
    },
    **{f"{WEIGHTS} cut to {share:.1%}": (cut(WEIGHTS, share), "no usable") for share in (0.001, 0.1, 0.5, 0.9, 0.999)},
    "weights are a pickle renamed": (becomes(WEIGHTS, pickle.dumps({"a": 1})), "no usable"),
    "weights are torch's pickle renamed": (becomes(WEIGHTS, pickled()), "no usable"),
    "weights are torch's pickle": (as_pickle, "can run code"),
    "weights are a pointer": (becomes(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "no usable"),
    "weights of an endless header": (becomes(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "header too large"),
    "weights that point elsewhere": (
        becomes(WEIGHTS, header(b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,99999999]}}')),
        "no usable",
    ),
    "one weight is NaN": (weights(lambda w: w["decoder.head.bias"].fill_(float("nan"))), "finite"),
    "one weight is infinite": (weights(lambda w: w["decoder.head.bias"].fill_(float("inf"))), "finite"),
    "a weight is missing": (weights(lambda w: w.pop("decoder.head.bias")), "do not fit"),
    "a weight too many": (weights(lambda w: w.update(other=torch.zeros(3))), "do not fit"),
    "a weight of another shape": (weights(lambda w: w.update({"decoder.head.bias": torch.zeros(2)})), "do not fit"),
    **{
        f"config with {' '.join(f'{key} {value!r}' for key, value in changes.items())}": (config(**changes), words)
        for changes, words in (
            ({"width": 32}, "do not fit"),
            ({"fusion_layers": 2}, "do not fit"),
            ({"aggregation": "sum"}, "do not fit"),
            ({"vocabulary": 99}, "do not fit"),
            ({"aspp_rates": []}, "do not fit"),
            ({"backbone_config": None}, "do not fit"),
            ({"aggregation": "of a newer version"}, "unknown aggregation"),
            ({"fusion": "of a newer version"}, "unknown fusion"),
            ({"backbone_config": {"model_type": "of a newer version"}}, "knows no backbone"),
            ({"backbone_config": {"model_type": "../../etc"}}, "knows no backbone"),
            ({"backbone_config": "resnet"}, "no usable"),
            ({"model_type": "bert"}, "bert"),
            ({"model_type": 5}, "type 5"),
            ({"threshold": 7}, "threshold"),
            ({"threshold": None}, "threshold"),
            ({"threshold": "0.5"}, "threshold"),
            ({"calibration": []}, "calibration"),
            ({"calibration": {"slope": 1}}, "calibration"),
            ({"image_size": 1}, "image_size"),
            ({"image_size": 10_000_000}, "image_size"),
            ({"grid": 100_000}, "grid"),
            ({"grid": "4"}, "grid"),
            ({"max_words": 0}, "max_words"),
            ({"width": 16.0}, "width"),
            ({"width": 1_000_000}, "checkpoint"),
            ({"fusion_ffn": -1}, "fusion_ffn"),
            ({"dropout": 2}, "dropout"),
            ({"decoder_widths": [8, 8]}, "decoder_widths"),
            ({"decoder_widths": [8, 8, "8"]}, "decoder_widths"),
            ({"aspp_rates": [0, 1, 2]}, "aspp_rates"),
            ({"pixel_std": [0, 0, 0]}, "pixel_std"),
            ({"pixel_std": [1]}, "pixel_std"),
            ({"pixel_std": [float("nan")] * 3}, "pixel_std"),
            ({"pixel_mean": "abc"}, "pixel_mean"),
            ({"dtype": "nonsense"}, "no usable"),
            ({"id2label": "x"}, "no usable"),
        )
    },
    "vocabulary of another model": (
        vocabulary(lambda v: v["model"]["vocab"].update({f"word{n}": 16 + n for n in range(99)})),
        "two models",
    ),
    "vocabulary that leaves numbers out": (vocabulary(lambda v: v["model"]["vocab"].update(dog=500)), "vocabulary"),
    "vocabulary without padding": (vocabulary(lambda v: v["model"]["vocab"].pop("<pad>")), "vocabulary"),
    "vocabulary that normalises nothing": (vocabulary(lambda v: v.update(normalizer=None)), "vocabulary"),
    "vocabulary that splits nothing": (vocabulary(lambda v: v.update(pre_tokenizer=None)), "vocabulary"),
}

FITTING: dict[str, Damage] = {
    "config with fields of a newer version": config(of_a_newer_version=1, transformers_version="99.0.0"),
    "config that names code": config(auto_map={"AutoModel": "evil.Evil"}),
    "config of more words": config(max_words=10**9),
    "more files": lambda folder: (folder / "evil.py").write_text("raise SystemExit"),
}
"""Folders that answer as the undamaged one does."""
