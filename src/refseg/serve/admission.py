"""What stands before the application: no more requests, bytes or seconds than the limits allow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refseg.serve.counters import Counters
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    ),
]
"""The page takes nothing from another host and runs no script but its own."""

_COUNTED = {"/v1/segment", "/v1/photos", "/v1/attention", "/v1/models"}
"""Paths with counters of their own; strangers must not be able to make new ones."""


class Admission:
    """ASGI middleware: bounds what is received and computed at one time, and counts."""

    def __init__(self, app: ASGIApp, limits: Limits, counters: Counters, hosts: Collection[str] = ()) -> None:
        """`hosts` are the names by which a request may call the server, in lower case; none means any."""
        self.app, self.limits, self.counters, self.hosts = app, limits, counters, hosts
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        send = self._counted(scope["path"], send)
        if self.hosts and (host := _host(scope)) not in self.hosts:
            names = f"this server is not called {host[:100]!r}; name it {min(self.hosts)}, or set REFSEG_HOSTS"
            return await Problem(421, names).response()(scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.inside >= self.limits.queue:
            busy = Problem(503, f"{self.inside} requests are waiting already; send this one again later", 1)
            return await busy.response()(scope, receive, send)
        deadline = time.monotonic() + self.limits.seconds
        scope.setdefault("state", {})["deadline"] = deadline
        self._enter(+1)
        try:
            async with asyncio.timeout(2 * self.limits.seconds):
                return await self.app(scope, self._bounded(receive, _declared(scope), deadline), send)
        except TimeoutError:
            return None  # the answer is not fetched: the connection is closed
        finally:
            self._enter(-1)

    def _enter(self, step: int) -> None:
        self.inside += step
        self.counters.inside.set(self.inside)

    def _counted(self, path: str, send: Send) -> Send:
        began = time.perf_counter()
        label = path if path in _COUNTED else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
                self.counters.requests.labels(label, str(message["status"])).inc()
                self.counters.seconds.labels(label).observe(time.perf_counter() - began)
            await send(message)

        return counted

    def _bounded(self, receive: Receive, declared: int, deadline: float) -> Receive:
        """`receive` that raises Problem where the body is too large or too slow."""
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if declared > self.limits.upload_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                slow = f"the request did not arrive within {self.limits.seconds:g} s; send a smaller photograph"
                raise Problem(408, slow) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.limits.upload_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Problem:
        limit = self.limits.upload_bytes / 1_000_000
        return Problem(413, f"the request is larger than {limit:g} MB; send a smaller or more compressed photograph")


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _host(scope: Scope) -> str:
    """The name by which a request calls the server, without a port; empty if it has none."""
    for name, value in scope["headers"]:
        if name == b"host":
            try:
                return urlsplit(f"//{value.decode('latin-1')}").hostname or ""
            except ValueError:
                return ""
    return ""
