"""One real server with the tiny model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_server import serving


@pytest.fixture(scope="session")
def server(tiny_model) -> Iterator[str]:
    with serving(tiny_model, seconds=60, expressions=4, upload_bytes=2_000_000, pixels=1_000_000) as (address, _):
        yield address
