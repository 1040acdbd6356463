"""A network of known weights answers as it did at the last release.

Weights come from each tensor's name, so that neither the order nor the kind of initialisation matters; NumPy
promises the numbers of RandomState for good. Answers agree within 1e-4, not to the bit: the kernels of
different processors add in different orders (SSE and AVX-512 differ by 2e-5 on these networks).

After a change of the network that is meant, write the answers anew: python tests/models/shnet/test_golden.py
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from refseg.models.interface import TokenBatch
from refseg.models.shnet import SHNet

ANSWERS = Path(__file__).with_name("golden.json")
NETWORKS = {
    "shipped": {},
    "baseline": {"fusion": "concat", "aggregation": "sum"},
    "sfm and convlstm": {"aggregation": "convlstm"},
    "sfm and conv3d without position": {"aggregation": "conv3d", "position": False},
    "dilated resnet": {
        "backbone_config": {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8] * 4, "embedding_size": 8},
        "output_stride": 16,
    },
}


def numbers(name, shape):
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def network(**changes):
    sizes = {"grid": 2, "word_size": 6, "width": 8, "fusion_layers": 2, "fusion_ffn": 8, "aspp_rates": (1, 2)}
    model = SHNet(tiny_config(**{**sizes, **changes})).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * numbers(name, tensor.shape).tanh())
        elif tensor.ndim > 1 and "image_encoder.mean" not in name and "image_encoder.std" not in name:
            tensor.copy_(numbers(name, tensor.shape) * (2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(0.1 * numbers(name, tensor.shape) + (1.0 if name.endswith("weight") else 0.0))
    return model


@torch.inference_mode()
def answers(name):
    """Mask logits (2, 8, 8) of two expressions about two photographs."""
    ids = torch.tensor([[3, 4, 5, 1], [6, 7, 0, 0]])
    photographs = numbers("photographs", (2, 3, 64, 64)).sigmoid()
    logits = network(**NETWORKS[name])(TokenBatch(ids, ids > 0), images=photographs).mask_logits
    return logits.squeeze(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_the_last_release(name):
    stored = torch.tensor(json.loads(ANSWERS.read_text())[name])
    assert stored.std() > 0.1
    torch.testing.assert_close(answers(name), stored, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    rounded = {name: [[[round(x, 7) for x in row] for row in m] for m in answers(name).tolist()] for name in NETWORKS}
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items()]
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
