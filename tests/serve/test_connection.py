"""What stands before a request: the socket, and bytes that cost more to read than to send."""

from __future__ import annotations

import json
import socket

import pytest
from local_server import photo

from refseg.serve.connection import listen

START = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def connection(server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def received(connection) -> tuple[int, str]:
    """The status of an answer after which the connection is closed, and its detail."""
    content = b""
    while piece := connection.recv(65536):
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head and b"connection: close" in head
    details = json.loads(body)
    assert details["status"] == int(head.split()[1]) and ";" in details["detail"]
    return details["status"], details["detail"]


def test_no_answer_waits_for_the_acknowledgement_of_its_head():
    """A connection inherits the option from the socket that accepts it."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.recv(1) == b""


def test_a_body_in_chunks_is_refused_before_it_is_read(connection):
    """Chunks of one byte: 20 MB of them occupied the server for seconds."""
    connection.sendall(START + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000)
    status, detail = received(connection)
    assert status == 411 and "Content-Length" in detail


@pytest.mark.parametrize(
    "sent",
    [
        START + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        START + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_a_head_has_an_end(connection, sent):
    connection.sendall(sent)
    assert received(connection)[0] == 431


def test_a_head_without_end_is_refused_while_it_comes(connection):
    connection.sendall(START)
    for _ in range(1_000):
        connection.sendall(b"X: " + b"y" * 1000 + b"\r\n")
    assert received(connection)[0] == 431


def test_a_long_body_is_no_long_head(connection):
    """Also where the next head begins within the bytes that ended it."""
    body = b'{"photo": "%%%", "expressions": ["dog"]}'.ljust(300_000)
    whole = START + b"Content-Length: %d\r\n\r\n" % len(body) + body
    connection.sendall(whole + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    connection.sendall(b"Connection: close\r\n\r\n")
    content = b""
    while piece := connection.recv(65536):
        content += piece
    assert content.startswith(b"HTTP/1.1 422 ") and content.endswith(b"ok\n")


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
def test_a_request_names_one_host(connection, hosts):
    connection.sendall(b"GET /healthz HTTP/1.1\r\n" + hosts + b"\r\n")
    assert received(connection) == (400, "the request does not name one Host; use an HTTP client")


def test_requests_do_not_pile_up_on_a_connection(connection):
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.sendall(asked * 5_000)
    content = b""
    while piece := connection.recv(65536):
        content += piece
    assert b"read their answers" in content and content.count(b"HTTP/1.1 200 ") < 5_000


def test_noise_is_answered_in_one_sentence(connection):
    connection.sendall(photo())
    assert received(connection)[0] == 400
