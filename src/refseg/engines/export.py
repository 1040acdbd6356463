"""A checkpoint as two graphs that hold their weights, with all that a program around them must know.

The image encoder runs once per photograph, the expression decoder once per expression. docs/export.md describes the
files; examples/onnx_only.py uses them without refseg and without PyTorch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from refseg.checkpoints import DECODER, ENCODER, WEIGHTS, Checkpoint
from refseg.engines.graphs import find_graphs
from refseg.engines.quiet import no_telemetry, quiet
from refseg.errors import RefsegError
from refseg.files import whole
from refseg.words import FILE as TOKENIZER
from refseg.words import PADDING, UNKNOWN

FORMATS = ("onnx", "openvino")
PRECISIONS = ("float32", "int8")
PREPROCESSING = "preprocessing.json"


def export(
    checkpoint: Checkpoint, folder: str | PathLike[str], format: str = "onnx", precision: str = "float32"
) -> list[Path]:
    """Writes both graphs, tokenizer.json and preprocessing.json into the folder; returns their paths.

    `format` is one of FORMATS; `precision` int8 stores weights in 8 bits (ONNX alone): docs/export.md has the loss.
    Raises RefsegError for a model that has no graphs, or where what writes the format is not installed.
    """
    if format not in FORMATS or precision not in PRECISIONS:
        raise RefsegError(f"{format} in {precision} is not written; one of: onnx, openvino; in float32 or, onnx, int8")
    if format == "openvino" and precision == "int8":
        raise RefsegError(
            'OpenVINO computes in int8 by refseg.load(engine="openvino", precision="int8"); export float32'
        )
    _need("onnx_ir", *(["openvino"] if format == "openvino" else []), *(["onnx"] if precision == "int8" else []))
    source, folder = find_graphs(checkpoint), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        graphs = [_with_weights(source / name, checkpoint, Path(scratch)) for name in (ENCODER, DECODER)]
        features, side = _read_shapes(*graphs)
        if format == "openvino":
            graphs = [written for graph in graphs for written in _to_openvino(graph)]
        elif precision == "int8":
            graphs = [_to_int8(graph) for graph in graphs]
        paths = [Path(shutil.move(graph, folder / graph.name)) for graph in graphs]
    shutil.copyfile(checkpoint.folder / TOKENIZER, folder / TOKENIZER)
    plan = describe(checkpoint, features, side, format, precision)
    with whole(folder / PREPROCESSING) as unfinished:
        unfinished.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return [*paths, folder / TOKENIZER, folder / PREPROCESSING]


def describe(
    checkpoint: Checkpoint, features: list[str], side: int, format: str = "onnx", precision: str = "float32"
) -> dict[str, Any]:
    """What preprocessing.json holds; its keys are explained in docs/export.md.

    `features` are the names of what passes from graph to graph, `side` is that of the mask logits.
    """
    encoder, decoder = (name if format == "onnx" else name.replace(".onnx", ".xml") for name in (ENCODER, DECODER))
    settings, words = checkpoint.settings, checkpoint.read_words()
    return {
        "format": format,
        "precision": precision,
        "image_encoder": {"file": encoder, "inputs": ["images"], "outputs": features},
        "expression_decoder": {"file": decoder, "inputs": ["ids", *features], "outputs": ["mask_logits"]},
        "image": {
            "side": settings.image_size,
            "colours": "RGB",
            "letterbox": settings.letterbox,
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
            "logits": [side, side],
            "resize": "bilinear, half-pixel centres, not antialiased, to the photograph's height and width",
            "then": "sigmoid",
            "threshold": settings.threshold,
        },
    }


def _with_weights(graph: Path, checkpoint: Checkpoint, folder: Path) -> Path:
    """The graph with the checkpoint's weights inside, as they are stored."""
    import onnx_ir as ir

    model = ir.load(graph)
    weights = (checkpoint.folder / WEIGHTS).resolve()  # the hub's cache has a link there
    for value in model.graph.initializers.values():
        place = value.const_value
        if isinstance(place, ir.ExternalTensor):
            there = ir.ExternalTensor(
                weights.name,
                place.offset,
                place.length,
                place.dtype,
                shape=place.shape,
                name=place.name,
                base_dir=weights.parent,
            )
            value.const_value = ir.Tensor(there.numpy(), dtype=place.dtype, name=place.name)
    path = folder / graph.name
    ir.save(model, path)
    return path


def _read_shapes(encoder: Path, decoder: Path) -> tuple[list[str], int]:
    """The names of the features, and the side of the mask logits."""
    import onnx_ir as ir

    features = [output.name or "" for output in ir.load(encoder).graph.outputs]
    (logits,) = ir.load(decoder).graph.outputs
    assert logits.shape is not None
    side: Any = logits.shape[-1]
    return features, side


def _to_int8(graph: Path) -> Path:
    """Weights of matrix products and convolutions in 8 bits; ranges of activations are taken as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = graph.with_name(f"folded-{graph.name}")
    with quiet():
        quant_pre_process(graph, folded, skip_symbolic_shape=True)  # weights that are computed become constants
        quantize_dynamic(folded, graph, per_channel=True, weight_type=QuantType.QUInt8)
    return graph


def _to_openvino(graph: Path) -> list[Path]:
    no_telemetry()
    import openvino

    path = graph.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(graph), path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _need(*modules: str) -> None:
    for module in modules:
        if find_spec(module) is None:
            extra = "openvino" if module == "openvino" else "train"
            raise RefsegError(f'this needs {module}; pip install "refseg[{extra}]"')
