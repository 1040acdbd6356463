"""Where a checkpoint is (inside the package, in a folder, on the Hugging Face hub) and what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from refseg.data.parses import Parses
from refseg.errors import RefsegError, first_line
from refseg.models.interface import ReferringNetwork
from refseg.models.registry import NETWORKS, find_network
from refseg.words import FILE as TOKENIZER
from refseg.words import WordTokenizer

PUBLISHED = {"clipseg": "CIDAS/clipseg-rd64-refined", "sam3": "facebook/sam3"}
"""Names of other models, and where they are on the hub."""
OTHER_TYPES = ("clipseg", "sam3", "sam3_video")
"""The `model_type` of checkpoints that `refseg.models.pretrained` reads."""

_SHIPPED = Path(__file__).parent / "weights"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FETCHED = (
    *(_CONFIG, _WEIGHTS, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("preprocessor_config.json", "processor_config.json"),
)
"""Never a pickle: those can run code."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_checkpoint(model: str | PathLike[str] | None) -> tuple[Path, str]:
    """The folder and `model_type` of the shipped model (None or "shipped"), a folder, a name of PUBLISHED, or a hub id.

    What is in the hub's local cache is used without the network; HF_HUB_OFFLINE=1 keeps it from being asked at all.
    Raises RefsegError where there is none, it is incomplete, its weights are a pickle, or its type is unknown.
    """
    model = None if model == "shipped" else model
    folder = _SHIPPED if model is None else _find_folder(model)
    if not (folder / _CONFIG).is_file():
        raise RefsegError(f"the model folder {folder} lacks {_CONFIG}; {_anew(model)}")
    try:
        kind = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as fault:
        raise RefsegError(f"{folder / _CONFIG} cannot be read ({fault}); copy the checkpoint again") from fault
    if kind not in (*NETWORKS, *OTHER_TYPES):
        known = ", ".join((*NETWORKS, *PUBLISHED))
        raise RefsegError(f"{folder} holds a model of type {kind}; refseg reads: {known}")
    if not (folder / _WEIGHTS).is_file():
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
        if pickles:
            raise RefsegError(
                f"the weights in {folder} are a pickle ({pickles[0]}), which can run code and is not read; have them "
                f"saved as {_WEIGHTS}, as save_pretrained does"
            )
        raise RefsegError(f"the model folder {folder} lacks {_WEIGHTS}; {_anew(model)}")
    if kind in NETWORKS and not (folder / TOKENIZER).is_file():
        raise RefsegError(f"the model folder {folder} lacks {TOKENIZER}; {_anew(model)}")
    return folder, kind


def _anew(model: str | PathLike[str] | None) -> str:
    return "install refseg anew" if model is None else "copy the whole checkpoint"


def _find_folder(model: str | PathLike[str]) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RefsegError(f"{folder} is a file; give the folder of the checkpoint")
    name = PUBLISHED.get(str(model), model)
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise RefsegError(
            f"there is no model folder {str(model)!r}; give a checkpoint's folder, a hub id 'org/name', "
            f"{' or '.join(PUBLISHED)}"
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    try:
        try:
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED), local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=list(_FETCHED)))
    except GatedRepoError as fault:
        raise RefsegError(
            f"{name} is given to those who accept its licence; do so on its page of the hub, then run hf auth login"
        ) from fault
    except Exception as fault:  # no such repository, no network, no permission, a malformed id
        if constants.HF_HUB_OFFLINE:
            raise RefsegError(
                f"{name} is neither a folder nor in the hub's cache, and HF_HUB_OFFLINE forbids the network; "
                "unset it to download the model"
            ) from fault
        raise RefsegError(
            f"there is no folder {name} and the hub gave no model of that name; "
            "check the spelling and the network, or give a checkpoint's folder"
        ) from fault


def load_network(model: str | PathLike[str] | None) -> tuple[ReferringNetwork, WordTokenizer]:
    """As `find_checkpoint` and `read_network`. Raises RefsegError also for a model that is not trained here."""
    folder, kind = find_checkpoint(model)
    if kind not in NETWORKS:
        raise RefsegError(f"{folder} holds a model of type {kind}; what is trained is of type {', '.join(NETWORKS)}")
    return read_network(folder, kind)


def read_network(folder: Path, model_type: str) -> tuple[ReferringNetwork, WordTokenizer]:
    """The network on the CPU and its vocabulary. Raises RefsegError for what is damaged or does not fit together."""
    network = _read_weights(folder, model_type)
    tokenizer = WordTokenizer.from_pretrained(folder, network.config.max_words)
    if len(tokenizer) > network.config.vocabulary:
        raise RefsegError(
            f"{folder} mixes two models: {len(tokenizer)} words in tokenizer.json and "
            f"{network.config.vocabulary} in config.json; copy one whole checkpoint"
        )
    if network.config.parses:
        tokenizer.parse = Parses()
    return network, tokenizer


def _read_weights(folder: Path, model_type: str) -> ReferringNetwork:
    again = "copy the checkpoint again"
    try:
        with quiet_transformers():
            network: ReferringNetwork
            network, report = find_network(model_type).from_pretrained(
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
        raise RefsegError(f"{folder} holds no usable {model_type} ({first_line(fault)}); {again}") from fault
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    differing = sorted(mismatched | report["missing_keys"] | report["unexpected_keys"])
    if differing:
        raise RefsegError(
            f"the weights in {folder} do not fit its config.json "
            f"({len(differing)} differ, such as {differing[0]}); {again}"
        )
    values = [value for value in network.state_dict().values() if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in values):
        raise RefsegError(f"the weights in {folder} hold values that are not finite numbers; {again}")
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
