"""The lowest version that pyproject.toml allows of every dependency, as a constraints file for pip.

    python benchmarks/oldest.py > oldest.txt && pip install -c oldest.txt -e ".[dev]" && python -m pytest

Names on the command line are left out; so `python benchmarks/oldest.py torch` keeps whichever torch pip finds.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest() -> dict[str, str]:
    """Versions by the name of the package; the extras' packages are among them."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    named = [name for names in (project["dependencies"], *extras) for name in names]
    found = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", name) for name in named]
    return {bound.group(1): bound.group(2) for bound in found if bound}


if __name__ == "__main__":
    for name, version in sorted(lowest().items()):
        if name not in sys.argv[1:]:
            print(f"{name}=={version}")
