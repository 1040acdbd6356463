"""OpenVINO as the engine: `refseg.load(engine="openvino")`. It reads the graphs that ONNX Runtime reads."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refseg.checkpoints import DECODER, ENCODER, WEIGHTS, Checkpoint
from refseg.engines.graphs import find_graphs
from refseg.engines.interface import Answers, Features, Floats
from refseg.engines.quiet import no_telemetry
from refseg.errors import RefsegError
from refseg.words import Tokens

Example = tuple[Floats, Tokens]
"""image (1, 3, S, S) and one sentence about it."""


class OpenVINOEngine:
    """A checkpoint's graphs on a CPU; an expression at a time, so that no word is padded."""

    device = "cpu"

    def __init__(self, checkpoint: Checkpoint, precision: str, threads: int, examples: Sequence[Example] = ()) -> None:
        """`precision`: float32, bfloat16, or int8, whose ranges are taken from `examples`.

        Raises RefsegError where OpenVINO is not installed or the examples are missing, and as `find_graphs` does.
        """
        no_telemetry()
        try:
            import openvino
        except ImportError as fault:
            raise RefsegError('this engine needs OpenVINO; pip install "refseg[openvino]"') from fault
        if precision == "int8" and not examples:
            raise RefsegError("int8 is calibrated on photographs; name some with calibrate_on")
        folder = find_graphs(checkpoint)
        checkpoint.check_weights()
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        with tempfile.TemporaryDirectory() as scratch:
            # In one folder, for it refuses weights behind a link, as the hub's cache has them.
            for file in (folder / ENCODER, folder / DECODER, checkpoint.folder / WEIGHTS):
                shutil.copy(file.resolve(), Path(scratch) / file.name)
            encoder, decoder = (core.read_model(Path(scratch) / name) for name in (ENCODER, DECODER))
            if precision == "int8":
                encoder, decoder = _quantized(core, encoder, decoder, examples)
            self._encoder = core.compile_model(encoder, "CPU", settings)
            self._decoder = core.compile_model(decoder, "CPU", settings)
        self._features = [output.any_name for output in self._encoder.outputs]
        self.parses = "heads" in [given.any_name for given in self._decoder.inputs]

    def encode(self, image: Floats) -> Features:
        outputs = self._encoder([image])
        return tuple(outputs[place].copy() for place in range(len(outputs)))

    def answer(self, tokens: Tokens, features: Features) -> Answers:
        seen = dict(zip(self._features, features, strict=True))
        return Answers(np.concatenate([self._decoder(words | seen)[0].copy() for words in tokens.unpadded()]))

    def attention(self, tokens: Tokens, features: Features) -> Floats:
        raise RefsegError("OpenVINO shows no attention here; leave engine out")


def _quantized(core: Any, encoder: Any, decoder: Any, examples: Sequence[Example]) -> tuple[Any, Any]:
    """Both graphs in int8, by the ranges that activations take on the examples; attention and LSTM stay as they are."""
    no_telemetry()
    try:
        import nncf
    except ImportError as fault:
        raise RefsegError('int8 needs NNCF; pip install "refseg[openvino]"') from fault
    nncf.set_log_level(logging.ERROR)
    exact = core.compile_model(encoder, "CPU")
    inputs = [given.any_name for given in decoder.inputs]

    def see(example: Example) -> list[Any]:
        return [example[0]]

    def ask(example: Example) -> list[Any]:
        features = exact(see(example))
        (words,) = example[1].unpadded()
        read = [words[name] for name in words if name in inputs]
        return [*read, *(features[place] for place in range(len(features)))]

    settings = {
        "subset_size": len(examples),
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(types=["LSTMSequence"], validate=False),
    }
    return (
        nncf.quantize(encoder, nncf.Dataset(examples, see), **settings),
        nncf.quantize(decoder, nncf.Dataset(examples, ask), **settings),
    )
