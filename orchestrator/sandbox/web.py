"""A WSGI application on loopback, in threads of this process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

IDLE_SECONDS = 10


class _QuietHandler(WSGIRequestHandler):
    timeout = IDLE_SECONDS  # of a connection that sends nothing: close() waits for its thread

    def log(self, type: str, message: str, *args: Any) -> None:
        """Requests are not worth a line each."""


class _Server(ThreadedWSGIServer):
    daemon_threads = False  # so that server_close() awaits them


class WebServer:
    """Serves from the start until it is closed.

    Args:
        app: the application.
        port: TCP port on loopback; 0: any free one.
    """

    def __init__(self, app: WSGIApplication, *, port: int = 0) -> None:
        self._server = _Server("127.0.0.1", port, app, handler=_QuietHandler)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="web-server"
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; returns when every request is answered and no thread is left."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
