"""A photograph for a first try: the one that comes with matplotlib, where that is installed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from refseg.errors import RefsegError


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
    from refseg.demo import EXPRESSIONS, sample_photo

    try:
        content = sample_photo().read_bytes()
    except RefsegError:  # without matplotlib
        return {}
    title = "Grace Hopper, 1984. United States Navy, public domain"
    return {"portrait.jpg": Example("portrait.jpg", title, EXPRESSIONS, content)}
