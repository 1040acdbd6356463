"""The networks by the `model_type` of their config; each is imported, and PyTorch with it, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.models.interface import ReferringNetwork

NETWORKS = {
    "shnet": "refseg.models.shnet:SHNet",
    "rrn": "refseg.models.rrn:RRN",
    "cmsa": "refseg.models.cmsa:CMSA",
    "step": "refseg.models.step:STEP",
    "brinet": "refseg.models.brinet:BRINet",
    "lscm": "refseg.models.lscm:LSCM",
    "cmpc": "refseg.models.cmpc:CMPC",
    "efn": "refseg.models.efn:EFN",
    "busnet": "refseg.models.busnet:BUSNet",
}
"""Where each network is: its module and its class."""


def find_network(model_type: str) -> type[ReferringNetwork]:
    """The class of the network, whose `config_class` is that of its config. Raises RefsegError for an unknown type."""
    if model_type not in NETWORKS:
        raise RefsegError(f"there is no network of model_type {model_type!r}; one of: {', '.join(sorted(NETWORKS))}")
    module, _, name = NETWORKS[model_type].partition(":")
    network: type[ReferringNetwork] = getattr(import_module(module), name)
    return network


def register(network: type[ReferringNetwork]) -> None:
    """Makes a network known to recipes and checkpoints by the `model_type` of its config."""
    NETWORKS[network.config_class.model_type] = f"{network.__module__}:{network.__name__}"


def network_of(settings: Mapping[str, Any]) -> type[ReferringNetwork]:
    """The class that a recipe's `model` section asks for by `model_type`; SHNet where it names none."""
    return find_network(settings.get("model_type", "shnet"))


def build_network(settings: Mapping[str, Any]) -> ReferringNetwork:
    """A fresh network of a recipe's `model` section. Raises RefsegError for a setting that no network can have."""
    network = network_of(settings)
    return network(network.config_class(**{name: value for name, value in settings.items() if name != "model_type"}))
