"""A package index as companies have it: it asks for a login, holds their own packages, and leads to the public ones."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

USER = "builder"
MODULE = "team_feature_store"
_PIP_KNOWS = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


def public_index() -> str:
    """Where pip looks by itself on this machine."""
    python = f"{sys.base_prefix}/bin/python3"
    configured = subprocess.run(
        [python, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if configured.returncode == 0:
        return configured.stdout.strip()
    return subprocess.run([python, "-c", _PIP_KNOWS], capture_output=True, text=True, check=True).stdout.strip()


class GroupIndex:
    """Listens on loopback, with one package of its own.

    Attributes:
        url: for pip and uv.
        package: the name of its own package, whose module is `MODULE`.
    """

    package = MODULE.replace("_", "-")

    def __init__(self, *, password: str) -> None:
        login = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
        wheel = _wheel()
        file = f"{MODULE}-1.0-py3-none-any.whl"
        public = public_index().rstrip("/")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Authorization"] != login:
                    self._answer(401, b"", "WWW-Authenticate", 'Basic realm="group"')
                elif self.path == f"/simple/{GroupIndex.package}/":
                    self._answer(200, f'<a href="/{file}">{file}</a>'.encode(), "Content-Type", "text/html")
                elif self.path == f"/{file}":
                    self._answer(200, wheel, "Content-Type", "application/octet-stream")
                else:
                    self._answer(302, b"", "Location", public + self.path.removeprefix("/simple"))

            do_HEAD = do_GET  # noqa: N815 - http.server's own name

            def _answer(self, status: int, body: bytes, header: str, value: str) -> None:
                self.send_response(status)
                self.send_header(header, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _wheel() -> bytes:
    info = f"{MODULE}-1.0.dist-info"
    files = {
        f"{MODULE}.py": "FEATURES = 7\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {GroupIndex.package}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()
