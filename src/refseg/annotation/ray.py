"""Photographs spread over the processes of one machine, or over a cluster, by Ray Data."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refseg.annotation.journal import Record
from refseg.annotation.label import Executor, Skipped, Task, answer, identity
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.segmenter import Segmenter

_BLOCK = 4
"""Photographs of one parcel of work, which is lost and done again where a worker dies."""


def over_ray(load: Callable[[], Segmenter], folder: Path, made_by: Record, on_gpus: bool) -> Executor:
    """The executor whose workers each load the model: one per GPU if asked and there are any, else one per core.

    `load` is pickled and called in every worker. `folder` and whatever `load` reads must lie at the same place on
    every machine. The cluster is that of RAY_ADDRESS, one that this machine has started, or a new one on
    this machine. A worker whose model has not the identity `made_by` refuses. Raises RefsegError without Ray, or
    where the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report itself to its makers
    try:
        import ray
        import ray.data
    except ImportError as fault:
        raise RefsegError(f'Ray needs {fault.name}; pip install "refseg[ray]"') from fault

    def execute(tasks: Sequence[Task]) -> Iterator[Record | Skipped]:
        if not tasks:
            return
        _connect(ray)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if on_gpus else 0
        blocks = -(-len(tasks) // _BLOCK)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells its plan, at length
        # As texts: Ray's tables would change what they take for numbers and cannot hold every file's name.
        table = ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=blocks)
        answered = table.map(
            _Worker,
            fn_constructor_args=(load, folder.resolve(), made_by),
            compute=ray.data.ActorPoolStrategy(size=max(1, min(gpus or int(resources.get("CPU", 1)), blocks))),
            num_gpus=1 if gpus else None,
        )
        try:
            for row in answered.iter_rows():
                yield _unpacked(json.loads(row["outcome"]))
        except ray.exceptions.RayError as fault:
            raise RefsegError(f"a worker of Ray failed ({_reason(fault)}); mend that and start again") from fault

    return execute


class _Worker:
    def __init__(self, load: Callable[[], Segmenter], folder: Path, made_by: Record) -> None:
        self.segmenter, self.folder = load(), folder
        if identity(self.segmenter) != made_by:
            raise RefsegError("a worker found another model under this name; copy one checkpoint to all machines")

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        photo, expressions = json.loads(row["task"])
        outcome = answer(self.segmenter, self.folder, (photo, expressions))
        packed = {"photo": photo, "skipped": outcome.reason} if isinstance(outcome, Skipped) else outcome
        return {"outcome": json.dumps(packed)}


def _connect(ray: Any) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as fault:
        raise RefsegError(
            f"Ray does not start or is not reached ({_reason(fault)}); check RAY_ADDRESS and the cluster's token"
        ) from fault


def _unpacked(packed: Record) -> Record | Skipped:
    return Skipped(packed["photo"], packed["skipped"]) if "skipped" in packed else packed


def _reason(fault: Exception) -> str:
    """The last line: Ray's errors begin with traces of other processes."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[-1] if lines else type(fault).__name__
