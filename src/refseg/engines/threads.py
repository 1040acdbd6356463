"""How many threads an engine may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_threads(cgroups: Path = _CGROUPS) -> int:
    """The processors that this process may run on, and no more than its control group's share of them.

    A quota of one and a half processors counts as two. OMP_NUM_THREADS, which torchrun and Ray set for processes that
    share a machine, is not exceeded either.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, other systems do not
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    if (quota := _quota(cgroups)) is not None:
        limits.append(math.ceil(quota))
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        limits.append(int(asked))
    return max(1, min(limits))


def _quota(cgroups: Path) -> float | None:
    """Processors of the control group, versions 2 and 1; None where there is no limit."""
    try:
        if (cgroups / "cpu.max").is_file():
            quota, period = (cgroups / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # another system, or another form
        return None
