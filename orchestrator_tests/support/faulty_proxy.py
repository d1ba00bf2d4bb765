"""An HTTP proxy in front of a real server that misbehaves on order, as networks and proxies do."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import requests

from orchestrator_sandbox.web import HandlerServer


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of being forwarded.

    Attributes:
        kind: `answer` with the fields below; `hang up` without forwarding; `lose answer`: forward, then hang
            up; `stall`: say nothing until the proxy is closed.
    """

    kind: Literal["answer", "hang up", "lose answer", "stall"] = "answer"
    status: int = 200
    body: str = ""
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)


class FaultyProxy:
    """Forwards to `upstream`, except for the faults that are queued: one per request.

    Args:
        upstream: address of the real server.
        certificate: PEM file with certificate and key, to talk TLS.
    """

    def __init__(self, upstream: str = "", *, certificate: Path | None = None) -> None:
        self.faults: deque[Fault] = deque()
        self.standing: Fault | None = None
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self._closing = threading.Event()
        self._server = HandlerServer(("127.0.0.1", 0), self._handler(upstream.rstrip("/")))
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def requests_for(self, endpoint: str) -> int:
        """How many requests came whose path ends like this."""
        return sum(path.partition("?")[0].endswith(endpoint) for _, path in self.seen)

    def _handler(self, upstream: str) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.seen.append((self.command, self.path))
                proxy.headers.append(dict(self.headers))
                fault = proxy.faults.popleft() if proxy.faults else proxy.standing
                if fault is None or fault.kind == "lose answer":
                    answer = self._forward(body)
                    if fault is None:
                        content_type = answer.headers.get("Content-Type", "")
                        self._answer(answer.status_code, answer.content, {"Content-Type": content_type})
                elif fault.kind == "answer":
                    headers = {"Content-Type": fault.content_type, **fault.headers}
                    self._answer(fault.status, fault.body.encode(), headers)
                elif fault.kind == "stall":
                    proxy._closing.wait(60)

            def _forward(self, body: bytes) -> requests.Response:
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                url = f"{upstream}{self.path}"
                return requests.request(self.command, url, data=body, headers=headers, timeout=30)

            def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
