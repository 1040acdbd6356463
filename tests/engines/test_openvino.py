"""OpenVINO answers what PyTorch answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import refseg
from refseg.errors import RefsegError
from refseg.segmenter import Segmenter

pytest.importorskip("openvino")

EXPRESSIONS = ["the dog", "the small white cat behind the man", "zebra"]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Segmenter:
    return refseg.load(tiny_model, device="cpu", engine="torch")


def test_same_logits_alone_and_in_a_batch(tiny_model: Path, plain: Segmenter, photo: np.ndarray) -> None:
    other = refseg.load(tiny_model, engine="openvino")
    encoded = other.encode(photo)
    expected = plain.mask_logits(plain.encode(photo), EXPRESSIONS)
    together = other.mask_logits(encoded, EXPRESSIONS)
    np.testing.assert_allclose(together, expected, rtol=1e-3, atol=1e-3)
    for number, expression in enumerate(EXPRESSIONS):
        alone = other.mask_logits(encoded, [expression])
        np.testing.assert_allclose(alone, together[number : number + 1], rtol=1e-3, atol=1e-3)


def test_int8_stays_near(tiny_model: Path, plain: Segmenter, photo: np.ndarray) -> None:
    pytest.importorskip("nncf")
    photos = [np.roll(photo, shift, axis=1) for shift in range(0, 60, 15)]
    other = refseg.load(tiny_model, engine="openvino", precision="int8", calibrate_on=photos)
    expected = plain.mask_logits(plain.encode(photo), EXPRESSIONS)
    found = other.mask_logits(other.encode(photo), EXPRESSIONS)
    assert not np.array_equal(found, expected)
    # Random weights lose far more to 8 bits than trained ones; docs/speed.md has the loss of IoU on photographs.
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.8


def test_int8_needs_photographs(tiny_model: Path) -> None:
    with pytest.raises(RefsegError, match="calibrate_on"):
        refseg.load(tiny_model, engine="openvino", precision="int8")
