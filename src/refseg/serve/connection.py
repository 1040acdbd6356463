"""A connection to the server: its socket, and the bounds on HTTP before a request is one."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from refseg.errors import RefsegError
from refseg.serve.problems import Problem

_HEAD = 65_536
"""The most bytes of a request's first line and headers."""
_LINGER = 1.0
"""Seconds."""
_PIPELINE = 8
"""The most requests that a connection sends before it reads their answers."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises RefsegError where the address is not free or not this machine's."""
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as fault:
        raise RefsegError(
            f"cannot listen on {host} port {port} ({fault.strerror or fault}); choose another with --host or --port"
        ) from fault
    # asyncio does this only for sockets of its own; without it, an answer's body waits 40 ms for its head to arrive.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def http_server(app: ASGIApp, seconds: float) -> uvicorn.Server:
    """The server of an application; when it ends, it waits up to `seconds` for the answers under way."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(seconds) + 1,
        )
    )


class _Refusal(Exception):  # noqa: N818 (no fault of the server's)
    """Stops the parser within a request."""


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn reads it, with bounds on what costs more to read than to send.

    A body in chunks is refused, because chunks of one byte occupy the server for seconds. So are headers without end,
    many requests before the first answer is read, and a request without one Host.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._head = 0
        """Bytes of a head that goes on, after those that came with its beginning."""
        self._refused = False
        self._refusal = Problem(400, "the request is not HTTP/1.1 as RFC 9112 describes it; use an HTTP client")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head += len(data)
        super().data_received(data)
        if self._in_head and self._head > _HEAD and not self._refused:
            self._refusal = _too_long()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        named = [name for name, _ in self.headers]
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > _HEAD:
            self._refuse(_too_long())
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._refuse(self._refusal)
        if named.count(b"host") != 1 and self.parser.get_http_version() == "1.1":
            self._refuse(Problem(400, "the request does not name one Host; use an HTTP client"))
        if b"transfer-encoding" in named:
            self._refuse(Problem(411, "the body comes in chunks; send it whole, with its Content-Length"))
        if len(self.pipeline) >= _PIPELINE:
            self._refuse(Problem(429, f"more than {_PIPELINE} requests wait on this connection; read their answers"))
        super().on_headers_complete()

    def send_400_response(self, _: str) -> None:
        """Answers what cannot be read and closes the connection, a second later.

        Until then what still arrives is read and dropped: else the client would be cut off and never see the answer.
        """
        answer = self._refusal.response()
        lines = [f"HTTP/1.1 {answer.status_code} ".encode(), b"\r\n"]
        lines += [name + b": " + value + b"\r\n" for name, value in (*answer.raw_headers, (b"connection", b"close"))]
        self.transport.write(b"".join([*lines, b"\r\n", bytes(answer.body)]))
        self.flow.resume_reading()
        self._refused = True
        self.loop.call_later(_LINGER, self.transport.close)

    def _refuse(self, problem: Problem) -> None:
        self._refusal = problem
        raise _Refusal


def _too_long() -> Problem:
    return Problem(431, f"the headers have more than {_HEAD:,} bytes; send fewer")
