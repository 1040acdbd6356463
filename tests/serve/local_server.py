"""A real server on a free port, and what is sent to it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import numpy as np
from PIL import Image

from refseg.segmenter import load
from refseg.serve import Limits, create_app
from refseg.serve.connection import http_server, listen

SEGMENT = "/v1/segment"


@contextmanager
def serving(tiny_model, options=None, **limits) -> Iterator[tuple[str, object]]:
    """The address of a server that runs in a thread of this process, its model in one of its own."""
    app = create_app(partial(load, tiny_model, device="cpu"), Limits(**limits), name="tiny", **options or {})
    listening = listen("127.0.0.1", 0)
    server = http_server(app, 10)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        wait_until_ready(address)
        yield address, app
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
    assert not thread.is_alive()


def wait_until_ready(address: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


def photo(seed: int = 0, size: tuple[int, int] = (48, 40), form: str = "PNG") -> bytes:
    """A file of noise, (H, W)."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, form)
    return content.getvalue()


def post(server, data=None, files=None, path=SEGMENT, **options):
    options.setdefault("timeout", 90)
    return httpx.post(f"{server}{path}", data=data, files=files, **options)


def as_form(server, content, expressions, **fields):
    return post(server, {"expressions": expressions, **fields}, {"photo": ("p.png", content)})


def as_json(server, path=SEGMENT, headers=None, **fields):
    return post(server, path=path, json=fields, headers=headers)


def problem(response, status) -> str:
    """The detail of a refusal, after the rules that hold for all of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    details = response.json()
    assert details["status"] == status and details["type"] == "about:blank" and details["title"]
    detail = details["detail"]
    assert detail.isprintable() and len(detail) < 300 and "Traceback" not in detail
    assert ";" in detail, f"no cure in {detail!r}"
    return detail
