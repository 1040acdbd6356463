"""What one server takes on. Every bound has a default, an environment variable, and a row in docs/serving.md."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from refseg.errors import RefsegError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Raises RefsegError if one is not above 0."""

    upload_bytes: float = 20_000_000
    """The largest request, in bytes. Base64 takes a third more than the photograph itself."""
    pixels: float = 50_000_000
    """The largest photograph, in pixels. Its header is checked before it is decoded."""
    expressions: int = 32
    """The most expressions of one request."""
    work: float = 400_000_000
    """The most work of one request, in pixels: those of the photograph, times the expressions, times a weight of the
    answer's form (see `worker.WEIGHTS`). 100 million take about a second of one core."""
    queue: int = 64
    """The most requests that are received, wait or are computed at one time. The next one is answered 503."""
    seconds: float = 30.0
    """The longest time from a request's first byte to its answer. A client has as long again to fetch that."""
    cached_photos: int = 64
    """The most encoded photographs that are kept."""
    cached_bytes: float = 512_000_000
    """The most memory for encoded photographs, in bytes. One of 12 megapixels takes about 50 MB."""
    batch: int = 8
    """The most waiting requests that are computed together."""
    tasks: int = 100
    """The most tasks of one request of Label Studio's."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise RefsegError(f"the limit {field.name} is {getattr(self, field.name)}; give a number above 0")

    @classmethod
    def from_environment(cls, **given: float | None) -> Limits:
        """The bounds that are given, the others from variables such as REFSEG_CACHED_PHOTOS, the rest by default.

        Raises RefsegError if a variable is not a number, or not a whole one where it counts things.
        """
        values = {name: value for name, value in given.items() if value is not None}
        for field in fields(cls):
            variable = f"REFSEG_{field.name.upper()}"
            if field.name not in values and variable in os.environ:
                try:
                    values[field.name] = (int if field.type == "int" else float)(os.environ[variable])
                except ValueError:
                    raise RefsegError(f"{variable} is {os.environ[variable]!r}; give a number above 0") from None
        return cls(**values)  # type: ignore[arg-type]
