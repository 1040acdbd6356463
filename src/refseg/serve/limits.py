"""What one server takes on; every bound has a default and a place in docs/serving.md."""

from __future__ import annotations

from dataclasses import dataclass, fields

from refseg.errors import RefsegError


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Raises RefsegError where one is not above 0."""

    upload_bytes: float = 20_000_000
    """The largest request; base64 needs a third more than the photograph itself."""
    pixels: float = 50_000_000
    """The largest photograph, by its header, before it is decoded."""
    expressions: int = 32
    """The most expressions of one request."""
    queue: int = 64
    """The most requests that are received, wait or are computed at one time; the next is answered 503."""
    seconds: float = 30.0
    """The longest time from a request's first byte to its answer; to fetch that, a client has as long again."""
    cached_photos: int = 64
    """The most encoded photographs that are kept."""
    cached_bytes: float = 512_000_000
    """The most memory that they may fill; one photograph of 12 megapixels takes 37 MB."""
    batch: int = 8
    """The most waiting requests that are computed together."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise RefsegError(f"the limit {field.name} is {getattr(self, field.name)}; give a number above 0")
