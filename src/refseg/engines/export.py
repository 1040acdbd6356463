"""A checkpoint as two graphs that other runtimes read, with all that a program around them must know.

The image encoder runs once per photograph, the expression decoder on as many expressions at once as there are.
docs/export.md describes the files; examples/onnx_only.py uses them without refseg and without PyTorch.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.engines.graphs import ExpressionGraph, ImageEncoderGraph
from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, TokenBatch
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.words import FILE as TOKENIZER
from refseg.words import PADDING, UNKNOWN, WordTokenizer

if TYPE_CHECKING:
    from refseg.segmenter import Segmenter

FORMATS = ("onnx", "openvino")
PRECISIONS = ("float32", "int8")
PREPROCESSING = "preprocessing.json"
OPSET = 18
LEVELS = ("second", "third", "fourth")

_ENCODER, _DECODER = "image_encoder", "expression_decoder"


def export(
    segmenter: Segmenter, folder: str | PathLike[str], format: str = "onnx", precision: str = "float32"
) -> list[Path]:
    """Writes both graphs, tokenizer.json and preprocessing.json into the folder; returns their paths.

    `format` is one of FORMATS; `precision` int8 stores weights in 8 bits (ONNX alone): docs/export.md has the loss.
    Raises RefsegError for another network than SHNet, or where what writes the format is not installed.
    """
    model, words = segmenter.model, segmenter.tokenizer
    if not isinstance(model, SHNet) or not isinstance(words, WordTokenizer):
        raise RefsegError("only SHNet is exported; give the folder of an SHNet checkpoint")
    if format not in FORMATS or precision not in PRECISIONS:
        raise RefsegError(f"{format} in {precision} is not written; one of: onnx, openvino; in float32 or, onnx, int8")
    if format == "openvino" and precision == "int8":
        raise RefsegError(
            'OpenVINO computes in int8 by refseg.load(engine="openvino", precision="int8"); export float32'
        )
    _need("onnx", "onnxscript")
    _need(*(["openvino"] if format == "openvino" else []), *(["onnxruntime"] if precision == "int8" else []))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        graphs = _write_onnx(model, Path(scratch))
        if format == "openvino":
            graphs = [written for graph in graphs for written in _to_openvino(graph)]
        elif precision == "int8":
            graphs = [_to_int8(graph) for graph in graphs]
        paths = [Path(shutil.move(graph, folder / graph.name)) for graph in graphs]
    (folder / TOKENIZER).write_text(words.tokenizer.to_str(pretty=False), encoding="utf-8")
    (folder / PREPROCESSING).write_text(
        json.dumps(describe(model.config, words, segmenter.threshold, format, precision), indent=2) + "\n"
    )
    return [*paths, folder / TOKENIZER, folder / PREPROCESSING]


def describe(
    config: SHNetConfig, words: WordTokenizer, threshold: float, format: str = "onnx", precision: str = "float32"
) -> dict[str, Any]:
    """What preprocessing.json holds; its keys are explained in docs/export.md."""
    suffix = "onnx" if format == "onnx" else "xml"
    output = config.output_side
    return {
        "format": format,
        "precision": precision,
        "image_encoder": {"file": f"{_ENCODER}.{suffix}", "inputs": ["images"], "outputs": list(LEVELS)},
        "expression_decoder": {
            "file": f"{_DECODER}.{suffix}",
            "inputs": ["ids", "mask", *LEVELS],
            "outputs": ["mask_logits"],
        },
        "image": {
            "side": config.image_size,
            "colours": "RGB",
            "resize": "bilinear",
            "reducing_gap": 2.0,
            "range": [0, 1],
            "statistics": "inside the graph",
        },
        "words": {
            "file": TOKENIZER,
            "max_words": words.max_words,
            "padding": {"word": PADDING, "id": 0},
            "unknown": {"word": UNKNOWN, "id": words.unknown_id},
            "unknown_punctuation": "dropped",
        },
        "mask": {
            "logits": [output, output],
            "resize": "bilinear, half-pixel centres, not antialiased, to the photograph's height and width",
            "then": "sigmoid",
            "threshold": threshold,
        },
    }


class ExportedNetwork:
    """What was exported to ONNX, as the form that computes in a `Segmenter`: to measure it on photographs."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        """Raises RefsegError where the folder holds no ONNX export."""
        _need("onnxruntime")
        import onnxruntime

        path = Path(folder) / PREPROCESSING
        if not path.is_file():
            raise RefsegError(f"{folder} holds no {PREPROCESSING}; write it by refseg export --out {folder}")
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != "onnx":
            raise RefsegError(f"{folder} holds an export to {record['format']}; write one with --format onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(str(path.parent / record[part]["file"]), options)
            for part in (_ENCODER, _DECODER)
        )
        self._max_words = record["words"]["max_words"]

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """images (1, 3, S, S) in 0..1 → three levels, each (1, C, h, w)."""
        return tuple(torch.from_numpy(level) for level in self._encoder.run(None, {"images": images.numpy()}))

    def __call__(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        """Mask logits (B, 1, 4h, 4w) of ids and mask (B, T), T at most the words that the graph reads."""
        room = (0, self._max_words - tokens.ids.shape[1])
        named = {"ids": F.pad(tokens.ids, room).numpy(), "mask": F.pad(tokens.mask, room).numpy()}
        named |= {name: level.numpy() for name, level in zip(LEVELS, features, strict=True)}
        return Prediction(torch.from_numpy(self._decoder.run(None, named)[0]))


def _write_onnx(model: SHNet, folder: Path) -> list[Path]:
    config = model.config
    model = model.eval().cpu()
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    ids = torch.zeros(2, config.max_words, dtype=torch.long)
    ids[:, 0] = 1
    encoder, decoder = ImageEncoderGraph(model), ExpressionGraph(model)
    with torch.no_grad():
        levels = encoder(images)
        asked = (ids, ids > 0, *levels)
        decoder(*asked)  # fills the tables of positions, which must not be traced
    count = torch.export.Dim("expressions")
    of_words: tuple[Any, ...] = ({0: count}, {0: count}, None, None, None)
    parts: list[tuple[str, nn.Module, tuple[Tensor, ...], tuple[Any, ...] | None, list[str], list[str]]] = [
        (_ENCODER, encoder, (images,), None, ["images"], list(LEVELS)),
        (_DECODER, decoder, asked, of_words, ["ids", "mask", *LEVELS], ["mask_logits"]),
    ]
    paths = []
    for name, graph, example, shapes, inputs, outputs in parts:
        path = folder / f"{name}.onnx"
        with _quiet(), torch.no_grad():
            program = torch.export.export(graph, example, dynamic_shapes=shapes)
            program = program.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool})
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        paths.append(path)
    return paths


def _adaptive_max_pool(x: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Adaptive max pooling by gathering, which ONNX has; the second value stands for indices that nobody reads."""
    for axis, length in zip((2, 3), size, strict=True):
        whole = x.shape[axis]
        place = torch.arange(length)
        first, past = place * whole // length, ((place + 1) * whole + length - 1) // length
        widest = max(-(-(i + 1) * whole // length) - i * whole // length for i in range(length))
        window = torch.minimum(first[:, None] + torch.arange(widest), past[:, None] - 1)  # a repeated pixel is harmless
        x = (
            x.index_select(axis, window.flatten())
            .reshape(*x.shape[:axis], length, widest, *x.shape[axis + 1 :])
            .amax(dim=axis + 1)
        )
    return x, torch.zeros_like(x, dtype=torch.long)


def _to_int8(graph: Path) -> Path:
    """Weights of matrix products and convolutions in 8 bits; ranges of activations are taken as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = graph.with_name(f"folded-{graph.name}")
    with _quiet():
        quant_pre_process(graph, folded, skip_symbolic_shape=True)  # weights that are computed become constants
        quantize_dynamic(folded, graph, per_channel=True, weight_type=QuantType.QUInt8)
    return graph


def _to_openvino(graph: Path) -> list[Path]:
    import openvino

    path = graph.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(graph), path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _need(*modules: str) -> None:
    import importlib.util

    for module in modules:
        if importlib.util.find_spec(module) is None:
            extra = "openvino" if module == "openvino" else "onnx"
            raise RefsegError(f'this needs {module}; pip install "refseg[{extra}]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what is not installed and what it will do."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
