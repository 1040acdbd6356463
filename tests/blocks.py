"""The code blocks of a page of documentation, and what runs them.

The comment above a block says what becomes of it: `run`, `run: NEED` where the module NEED is installed, or
`not run: REASON`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_COMMENT = r"(?:<!-- (not run|run)(?:: ([^\n]+?))? -->[ ]*\n\s*)?"
_BLOCK = re.compile(rf"^{_COMMENT}```(python|bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    place: str
    """The page and the block's line."""
    verdict: str
    """`run`, `not run`, or nothing."""
    note: str
    """The module that running needs, or why it is not run."""
    language: str
    text: str

    def __str__(self) -> str:
        return self.place


def find_blocks(page: Path) -> list[Block]:
    """The blocks of Python and of the shell, from top to bottom."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(f"{page.name}:{content.count(chr(10), 0, found.start()) + 1}", *(part or "" for part in found.groups()))
        for found in _BLOCK.finditer(content)
    ]


def as_shell(block: Block) -> str:
    """What is typed; in a console block, what stands behind a dollar sign."""
    if block.language != "console":
        return block.text
    return "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("$ "))


def run_block(block: Block, folder: Path, names: dict[str, Any]) -> str:
    """Runs a block in `folder`, Python in this process with `names` for its globals; returns what a shell printed."""
    if block.language == "python":
        here = Path.cwd()
        os.chdir(folder)
        try:
            exec(compile(block.text, block.place, "exec"), names)
        finally:
            os.chdir(here)
        return ""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", as_shell(block)],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stderr[-4000:]}"
    return done.stdout
