"""Programs in processes of their own, one or several that torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
"""Starts what follows twice; both know of each other."""


def python(*line: object, launcher: list[str] | tuple[()] = (), **environment: str) -> str:
    """What `python LINE` prints; it must end well. `environment` adds variables, such as REFSEG_CACHE."""
    plain = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, line)],
        capture_output=True,
        text=True,
        env={**os.environ, **plain, **environment},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchrun(*line: object, **environment: str) -> str:
    """As `python`, in two processes."""
    return python(*line, launcher=LAUNCHER, **environment)
