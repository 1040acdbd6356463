"""The socket that `refseg serve` listens on."""

import socket

from refseg.cli.serving import _listen


def test_no_answer_waits_for_the_acknowledgement_of_its_head():
    """A connection inherits the option from the socket that accepts it."""
    with _listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.recv(1) == b""
