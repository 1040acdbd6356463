"""A network as ONNX graphs beside its checkpoint, whose weights they point at. PyTorch traces them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.checkpoints import ATTENTION, DECODER, ENCODER, GRAPHS, WEIGHTS, Checkpoint
from refseg.engines.interface import NoGraphError
from refseg.engines.quiet import quiet
from refseg.errors import RefsegError, first_line
from refseg.files import whole
from refseg.models.graphs import graphs_of
from refseg.models.reading import read_network

if TYPE_CHECKING:
    import onnx_ir as ir

    from refseg.models.interface import ReferringNetwork

OPSET = 18

_WORDS = 3
"""Words of the sentence that is traced; any other number is admitted."""
_FOLDED = 4096
"""Numbers of the largest constant that is computed ahead; a larger one is computed when the graph is loaded."""
_DTYPES = {"F64": "DOUBLE", "F32": "FLOAT", "F16": "FLOAT16", "BF16": "BFLOAT16", "I64": "INT64"}
"""Of safetensors, in ONNX's words."""


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the checkpoint's graphs into the folder: some 100 kB each, for the weights stay where they are.

    The graphs name the file of the weights as if it lay in the same folder, and carry the checkpoint's stamp. Raises
    RefsegError for a damaged checkpoint, a network that cannot be exported, or where a library is missing.
    """
    network = read_network(checkpoint).eval()
    try:
        import onnx_ir as ir
        import onnxscript  # noqa: F401
    except ImportError as fault:
        raise RefsegError(f'writing graphs needs {fault.name}; pip install "refseg[train]"') from fault

    try:
        models = _trace(network)
    except Exception as fault:  # whatever the tracer or the exporter meets in a backbone
        raise NoGraphError(
            f"the network in {checkpoint.folder} cannot be written as graphs ({first_line(fault)}); "
            'PyTorch computes it with engine="torch"'
        ) from fault
    for name in GRAPHS:
        if name not in models:
            (folder / name).unlink(missing_ok=True)
            continue
        _point_at_weights(models[name], checkpoint)
        models[name].metadata_props["stamp"] = checkpoint.stamp
        with whole(folder / name) as unfinished:
            ir.save(models[name], unfinished)


def _trace(network: ReferringNetwork) -> dict[str, ir.Model]:
    """The graphs by the names of their files; every weight is an input behind the others, under its own name."""
    graphs, config = graphs_of(network), network.config
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    ids = torch.ones(1, _WORDS, dtype=torch.long)
    with torch.no_grad():
        features = graphs.encoder(images)
    seen = [f"feature_{number}" for number in range(len(features))]
    length = {1: torch.export.Dim("words", min=1, max=max(config.max_words, _WORDS))}
    words, names = ((ids, torch.zeros_like(ids)), ["ids", "heads"]) if config.parses else ((ids,), ["ids"])
    asked, named = (*words, *features), [*names, *seen]
    shapes = (*(length for _ in words), (None,) * len(features))
    models = {
        ENCODER: trace(graphs.encoder, (images,), ["images"], seen),
        DECODER: trace(graphs.decoder, asked, named, ["mask_logits"], shapes),
    }
    if graphs.attention is not None:
        models[ATTENTION] = trace(graphs.attention, asked, named, ["shares"], shapes)
    return models


def trace(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...] | None = None,
) -> ir.Model:
    """A module as ONNX, simplified; the weights of its `network` become inputs under their own names.

    `shapes` are the dynamic shapes of `torch.export`.
    """
    import onnx_ir.passes.common as passes
    import onnxscript

    with quiet(), _in_words_of_onnx(), torch.no_grad():
        program = torch.onnx.export(
            torch.export.export(graph, example, dynamic_shapes=shapes),
            (),
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = program.model
    _make_inputs(model, list(graph.state_dict()))  # what no checkpoint stores stays a constant of the graph
    onnxscript.optimizer.optimize(model, output_size_limit=_FOLDED)
    passes.ClearMetadataAndDocStringPass()(model)
    return model


def _make_inputs(model: ir.Model, weights: Collection[str]) -> None:
    """The optimiser computes with what is constant: weights must not be, for they stay in their file."""
    for name in weights:
        if value := model.graph.initializers.pop(name, None):
            value.const_value = None
            value.name = name.removeprefix("network.")
            model.graph.inputs.append(value)


def _point_at_weights(model: ir.Model, checkpoint: Checkpoint) -> None:
    """Makes of every weight among the inputs its place in the checkpoint's file, cast where that holds halves."""
    import onnx_ir as ir

    for value in list(model.graph.inputs):
        stored = checkpoint.tensors.get(value.name or "")
        if stored is None:
            continue
        model.graph.inputs.remove(value)
        if not value.uses():
            continue
        dtype = ir.DataType[_DTYPES[stored.dtype]]
        place = ir.ExternalTensor(
            WEIGHTS,
            stored.start,
            stored.end - stored.start,
            dtype,
            shape=ir.Shape(stored.shape),
            name=value.name or "",
            base_dir=checkpoint.folder,
        )
        if dtype == value.dtype:
            value.const_value = place
            model.graph.register_initializer(value)
            continue
        half = ir.Value(name=value.name, type=ir.TensorType(dtype), shape=ir.Shape(stored.shape), const_value=place)
        value.name = f"{value.name}:{value.dtype}"
        cast = ir.node("Cast", [half], {"to": value.dtype}, outputs=[value])
        model.graph.register_initializer(half)
        model.graph.insert_before(model.graph[0], cast)


def embed(model: ir.Model, weights: Mapping[str, Tensor]) -> None:
    """Makes of every weight among the inputs a constant of the graph."""
    import onnx_ir as ir

    for value in list(model.graph.inputs):
        if (weight := weights.get(value.name or "")) is not None:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(weight.detach().numpy(), name=value.name)
            model.graph.register_initializer(value)


@contextmanager
def _in_words_of_onnx() -> Iterator[None]:
    """What the exporter does not know, or freezes to the traced number of words, says ONNX's operators itself."""
    with (
        patch.object(nn.LSTM, "forward", _lstm),
        patch.object(nn.GRU, "forward", _gru),
        patch.object(F, "adaptive_max_pool2d", adaptive_max_pool),
    ):
        yield


def _lstm(lstm: nn.LSTM, x: Tensor) -> tuple[Tensor, None]:
    """A one-layer, one-way LSTM over x (B, T, E) as ONNX has it, for any T; its last state is not read."""

    def in_order(weight: Any) -> Tensor:
        into, forget, new, out = weight.chunk(4)
        return torch.cat([into, out, forget, new])

    return _recurrent("LSTM", lstm, in_order, x, {})


def _gru(gru: nn.GRU, x: Tensor) -> tuple[Tensor, None]:
    """The same of a GRU."""

    def in_order(weight: Any) -> Tensor:
        reset, update, new = weight.chunk(3)
        return torch.cat([update, reset, new])

    return _recurrent("GRU", gru, in_order, x, {"linear_before_reset": 1})


def _recurrent(
    operator: str, module: nn.RNNBase, in_order: Callable[[Any], Tensor], x: Tensor, attributes: dict[str, int]
) -> tuple[Tensor, None]:
    """ONNX's operator over x (B, T, E); `in_order` puts the gates of a weight into ONNX's order."""
    if not module.batch_first or module.bidirectional or module.num_layers != 1 or module.proj_size:
        raise RefsegError(f"{operator} of more than one layer or direction has no graph")
    given, kept = (in_order(weight)[None] for weight in (module.weight_ih_l0, module.weight_hh_l0))
    bias = torch.cat([in_order(module.bias_ih_l0), in_order(module.bias_hh_l0)])[None]
    steps = x.transpose(0, 1)  # (T, B, E)
    shape = (steps.shape[0], 1, steps.shape[1], module.hidden_size)
    sizes: dict[str, Any] = {"hidden_size": module.hidden_size, **attributes}
    hidden = torch.onnx.ops.symbolic(operator, (steps, given, kept, bias), sizes, dtype=x.dtype, shape=shape)
    return hidden[:, 0].transpose(0, 1), None


def adaptive_max_pool(x: Tensor, side: int) -> Tensor:
    """`F.adaptive_max_pool2d` of (B, C, h, w) to a square, by operators that ONNX has."""
    h, w = x.shape[2:]
    if h == w and side % h == 0:  # each pixel several times
        return x if side == h else F.interpolate(x, scale_factor=side // h, mode="nearest")
    if h % side == 0 and w % side == 0:
        return F.max_pool2d(x, (h // side, w // side))
    for axis in (2, 3):
        length = x.shape[axis]
        place = torch.arange(side)
        first, past = place * length // side, ((place + 1) * length + side - 1) // side
        widest = max(-(-(i + 1) * length // side) - i * length // side for i in range(side))
        window = torch.minimum(first[:, None] + torch.arange(widest), past[:, None] - 1)  # a repeated pixel is harmless
        shape = (*x.shape[:axis], side, widest, *x.shape[axis + 1 :])
        x = x.index_select(axis, window.flatten()).reshape(shape).amax(dim=axis + 1)
    return x
