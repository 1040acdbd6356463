"""What the bad requests are asked of, and the good request between them that must not notice."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "serve"))  # its server is used here as well

from cases_photographs import noise

LONGEST = 10
"""Seconds after which anything hangs."""


@pytest.fixture(scope="session")
def segmenter(tiny_model):
    from refseg.segmenter import load

    return load(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def unaffected(segmenter) -> Callable[[], None]:
    """Asks about a good photograph, and compares the mask with the first one, bit by bit."""
    from refseg.photo import read_photo

    first = segmenter(noise(), "the dog")
    encoded = segmenter.encode(noise())

    def check() -> None:
        assert read_photo(noise()).tobytes() == first.photo.tobytes()
        (again,) = segmenter.segment(encoded, ["the dog"])
        np.testing.assert_array_equal(again.mask, first.mask)

    return check


@contextmanager
def in_time() -> Iterator[None]:
    """Counts this process's own seconds: other work on the machine must not fail a test."""
    began = time.process_time()
    yield
    assert time.process_time() - began < LONGEST, "it hangs"


def sentence(message: str) -> str:
    """A refusal, after the rules that hold for all of them."""
    assert message.isprintable(), "one line that any terminal shows"
    assert ";" in message or ": " in message, "what is wrong; what to do"
    assert not message.endswith(".") and len(message) < 500 and "Traceback" not in message
    return message


@pytest.fixture
def checkpoint(tiny_model, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(tiny_model, tmp_path / "checkpoint")
