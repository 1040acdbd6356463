"""Libraries that speak, to the terminal or to their makers."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's remarks on what is not installed and what it will do."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def no_telemetry() -> None:
    """Keeps OpenVINO and NNCF, if imported after this, from calling an analytics service: its package looks missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
