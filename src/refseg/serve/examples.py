"""A photograph for a first try: the demonstration's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from refseg.demo import EXPRESSIONS, PHOTO, TITLE


@dataclass(frozen=True)
class Example:
    """A photograph's file and what to ask about it."""

    name: str
    title: str
    expressions: tuple[str, ...]
    content: bytes

    @property
    def listing(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, "expressions": self.expressions}


@cache
def photographs() -> dict[str, Example]:
    """The examples by name; read when they are first asked for."""
    return {PHOTO.name: Example(PHOTO.name, TITLE, EXPRESSIONS, PHOTO.read_bytes())}
