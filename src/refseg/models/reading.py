"""A checkpoint's network, read by PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

import torch
from transformers.utils import logging as transformers_logging

from refseg.checkpoints import Checkpoint, find_checkpoint
from refseg.errors import RefsegError, first_line
from refseg.models.interface import ReferringNetwork
from refseg.models.registry import NETWORKS, find_network
from refseg.words import WordTokenizer


def read_start(model: str | PathLike[str] | None) -> tuple[ReferringNetwork, WordTokenizer]:
    """The network and vocabulary to go on from; see `find_checkpoint`. Raises RefsegError for another's model."""
    checkpoint = find_checkpoint(model)
    if checkpoint.model_type not in NETWORKS:
        raise RefsegError(
            f"{checkpoint.folder} holds a model of type {checkpoint.model_type}; "
            f"what is trained is of type {', '.join(NETWORKS)}"
        )
    return read_network(checkpoint), checkpoint.read_words()


def read_network(checkpoint: Checkpoint) -> ReferringNetwork:
    """The network on the CPU, in float32. Raises RefsegError for what is damaged or does not fit together."""
    folder, again = checkpoint.folder, "copy the checkpoint again"
    try:
        with quiet_transformers():
            network: ReferringNetwork
            network, report = find_network(checkpoint.model_type).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                output_loading_info=True,
                dtype=torch.float32,
            )
    except RefsegError:
        raise
    except Exception as fault:  # damaged JSON or safetensors, values of a config that build no network
        raise RefsegError(f"{folder} holds no usable {checkpoint.model_type} ({first_line(fault)}); {again}") from fault
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    differing = sorted(mismatched | report["missing_keys"] | report["unexpected_keys"])
    if differing:
        raise RefsegError(
            f"the weights in {folder} do not fit its config.json "
            f"({len(differing)} differ, such as {differing[0]}); {again}"
        )
    checkpoint.check_weights()
    return network


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the library's progress bar and its table of weights that do not fit; ours is one sentence."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
