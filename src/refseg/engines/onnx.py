"""ONNX Runtime, the engine that answers on a CPU."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime

from refseg.checkpoints import ATTENTION, DECODER, ENCODER, WEIGHTS, Checkpoint
from refseg.engines.graphs import find_graphs
from refseg.engines.interface import Answers, Features, Floats
from refseg.errors import RefsegError
from refseg.words import Tokens


class OnnxEngine:
    """A checkpoint's graphs; an expression at a time, so that no word is padded."""

    device = "cpu"

    def __init__(
        self, encoder: Path, decoder: Path, attention: Path | None, weights: Path | None, threads: int
    ) -> None:
        """The files of three graphs, and of the weights that they point at."""
        self.threads = threads
        self._weights = weights
        self._encoder, self._decoder = self._session(encoder), self._session(decoder)
        self._attention_graph = attention
        self._features = [output.name for output in self._encoder.get_outputs()]
        self.parses = "heads" in [given.name for given in self._decoder.get_inputs()]

    @classmethod
    def of(cls, checkpoint: Checkpoint, threads: int) -> OnnxEngine:
        """Raises RefsegError as `find_graphs` does, and where a weight is no finite number."""
        folder = find_graphs(checkpoint)
        checkpoint.check_weights()
        attention = folder / ATTENTION if checkpoint.has_graph(folder / ATTENTION) else None
        return cls(folder / ENCODER, folder / DECODER, attention, checkpoint.folder / WEIGHTS, threads)

    def encode(self, image: Floats) -> Features:
        return tuple(self._encoder.run(None, {"images": image}))

    def answer(self, tokens: Tokens, features: Features) -> Answers:
        seen = dict(zip(self._features, features, strict=True))
        return Answers(np.concatenate([self._decoder.run(None, words | seen)[0] for words in tokens.unpadded()]))

    def attention(self, tokens: Tokens, features: Features) -> Floats:
        seen = dict(zip(self._features, features, strict=True))
        (words,) = tokens.unpadded()
        shares: Floats = self._shares.run(None, words | seen)[0]
        return shares

    @cached_property
    def _shares(self) -> onnxruntime.InferenceSession:
        if self._attention_graph is None:
            raise RefsegError("this model fuses without attention; load one whose config says fusion: sfm")
        return self._session(self._attention_graph)

    def _session(self, graph: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Threads that spin while they wait take the processor from each other where it is busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors alone
        model: str | bytes = str(graph)
        if self._weights is not None and (self._weights.is_symlink() or self._weights != graph.with_name(WEIGHTS)):
            # The runtime itself reads only what lies beside the graph, and not behind a link as in the hub's cache.
            self._mapped = np.memmap(self._weights, dtype=np.uint8, mode="r")
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [self._mapped], [len(self._mapped)])
            model = graph.read_bytes()
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as fault:  # the library's own kinds have no common parent
            raise RefsegError(f"{graph} is damaged; delete it, and it is written anew") from fault
