"""A server that answers with the path it was asked for; for tests of the proxies and of the light training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from orchestrator.names import MlflowTag
from orchestrator_sandbox.web import HandlerServer


class Echo(BaseHTTPRequestHandler):
    """Enough of an MLflow for a light training; every answer names the path that was asked for."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        tags = [{"key": MlflowTag.PARTITION, "value": "12"}]
        body = json.dumps({"path": self.path, "run": {"data": {"tags": tags}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""


@contextmanager
def echo_server() -> Iterator[str]:
    """Serve; yields the address."""
    server = HandlerServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
