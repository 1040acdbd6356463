"""OpenVINO as the engine behind a `Segmenter`: `refseg.load(engine="openvino")`.

Words are read by PyTorch, which costs next to nothing; the image encoder and all that follows the words are two graphs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refseg.engines.graphs import AnswerGraph, ImageEncoderGraph
from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, TokenBatch

if TYPE_CHECKING:
    from refseg.models.shnet import SHNet


class OpenVINONetwork:
    """Takes and gives what `SHNet` does about one photograph, on a CPU."""

    def __init__(
        self, model: SHNet, precision: str = "float32", examples: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """`precision`: float32, bfloat16, or int8, whose ranges are taken from `examples`.

        An example is images (1, 3, S, S) and the ids (1, T) of an expression about them. Raises RefsegError where
        OpenVINO is not installed or the examples are missing.
        """
        try:
            import openvino
        except ImportError as fault:
            raise RefsegError('this engine needs OpenVINO; pip install "refseg[openvino]"') from fault
        if precision == "int8" and not examples:
            raise RefsegError("int8 is calibrated on photographs; name some with calibrate_on")
        self.text_encoder = model.text_encoder
        encoder, answer = _convert(model)
        if precision == "int8":
            encoder, answer = _quantized(model, encoder, answer, examples)
        hint = "bf16" if precision == "bfloat16" else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        core = openvino.Core()
        self._encoder = core.compile_model(encoder, "CPU", settings)
        self._answer = core.compile_model(answer, "CPU", settings)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """images (1, 3, S, S) in 0..1 → three levels, each (1, C, h, w)."""
        outputs = self._encoder([images.numpy()])
        return tuple(torch.from_numpy(outputs[place].copy()) for place in range(3))

    def __call__(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        """Mask logits (B, 1, 4h, 4w)."""
        words = self.text_encoder(tokens.ids, tokens.mask)
        outputs = self._answer([words.numpy(), tokens.mask.numpy(), *(level.numpy() for level in features)])
        return Prediction(torch.from_numpy(outputs[0].copy()))


def _convert(model: SHNet) -> tuple[Any, Any]:
    import openvino

    config = model.config
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    # Two expressions of different length, or the tracer takes their number and the mask for constants.
    ids = torch.tensor([[2, 3, 4], [2, 0, 0]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that are constants here
        levels, mask = model.encode(images), ids > 0
        words = model.text_encoder(ids, mask)
        encoder = openvino.convert_model(ImageEncoderGraph(model), example_input=(images,), input=list(images.shape))
        answer = openvino.convert_model(AnswerGraph(model), example_input=(words, mask, *levels))
    grid = [1, config.width, config.grid, config.grid]
    answer.reshape(dict(enumerate([[-1, -1, config.width], [-1, -1], grid, grid, grid])))
    return encoder, answer


def _quantized(model: SHNet, encoder: Any, answer: Any, examples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """Both graphs in int8, by the ranges that activations take on the examples; attention stays as it is."""
    try:
        import nncf
    except ImportError as fault:
        raise RefsegError('int8 needs NNCF; pip install "refseg[openvino]"') from fault
    nncf.set_log_level(logging.ERROR)

    @torch.inference_mode()
    def asked(example: tuple[Tensor, Tensor]) -> list[Any]:
        images, ids = example
        mask = ids > 0
        words, levels = model.text_encoder(ids, mask), model.encode(images)
        return [words.numpy(), mask.numpy(), *(level.numpy() for level in levels)]

    settings = {"subset_size": len(examples), "model_type": nncf.ModelType.TRANSFORMER}
    return (
        nncf.quantize(encoder, nncf.Dataset(examples, lambda e: [e[0].numpy()]), subset_size=len(examples)),
        nncf.quantize(answer, nncf.Dataset(examples, asked), **settings),
    )
