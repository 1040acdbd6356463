"""Finds in a photograph what a sentence describes and returns its mask.

import refseg

segmenter = refseg.load()
result = segmenter("street.jpg", "the red bag on the left")
result.mask, result.score, result.box
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refseg.errors import RefsegError
    from refseg.models.shnet import SHNet, SHNetConfig
    from refseg.segmentation import Segmentation
    from refseg.segmenter import EncodedPhoto, Segmenter, load

    __version__: str

__all__ = [
    "EncodedPhoto",
    "RefsegError",
    "SHNet",
    "SHNetConfig",
    "Segmentation",
    "Segmenter",
    "__version__",
    "load",
]

_HOMES = {
    "EncodedPhoto": "refseg.segmenter",
    "RefsegError": "refseg.errors",
    "SHNet": "refseg.models.shnet",
    "SHNetConfig": "refseg.models.shnet",
    "Segmentation": "refseg.segmentation",
    "Segmenter": "refseg.segmenter",
    "load": "refseg.segmenter",
}


def __getattr__(name: str) -> Any:
    # Names are fetched on first use: importing torch takes seconds that `import refseg` should not cost.
    if name == "__version__":
        from importlib.metadata import version

        return version("refseg")
    if name not in _HOMES:
        raise AttributeError(f"module 'refseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
