"""The sandbox's web servers say nothing of a client that is killed, and all of an error of their own."""

from __future__ import annotations

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from orchestrator_sandbox.web import HandlerServer

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Breaks(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        raise LookupError("a defect")


class Watched(HandlerServer):
    """Knows when it is through with a request, errors included."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Breaks)
        self.through = threading.Event()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.through.set()


def printed_when_sent(sent: bytes, capsys: pytest.CaptureFixture[str]) -> str:
    """What a server prints when a client sends this and hangs up with a reset."""
    with Watched() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.sendall(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert server.through.wait(30)
        assert server.through.wait(30)
        server.shutdown()
    return capsys.readouterr().err


def test_a_client_that_hangs_up_is_not_worth_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_when_sent(b"GET / HTT", capsys) == ""


def test_a_defect_of_the_handler_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "LookupError: a defect" in printed_when_sent(b"GET / HTTP/1.1\r\n\r\n", capsys)
