"""Where the graphs of a checkpoint are: beside its weights, or in the user's cache; they are written on first use."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from refseg.checkpoints import DECODER, ENCODER, Checkpoint
from refseg.errors import RefsegError
from refseg.files import cache_folder

logger = logging.getLogger(__name__)


def find_graphs(checkpoint: Checkpoint) -> Path:
    """The folder of the checkpoint's graphs; where there are none, PyTorch writes them, in half a minute.

    Raises RefsegError for a damaged checkpoint, or where there are no graphs and nothing that could write them.
    """
    beside, cached = checkpoint.folder, cache_folder() / "graphs" / checkpoint.stamp
    for folder in (beside, cached):
        if all(checkpoint.has_graph(folder / name) for name in (ENCODER, DECODER)):
            return folder
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise RefsegError(
            f"{beside} holds no graphs for its weights, and PyTorch, which writes them on first use, is not installed; "
            'pip install "refseg[train]"'
        )
    from refseg.engines.tracing import write_graphs

    logger.warning("writing the graphs of %s, once", beside)
    folder = beside if os.access(beside, os.W_OK) else cached
    folder.mkdir(parents=True, exist_ok=True)
    write_graphs(checkpoint, folder)
    return folder
