"""Web servers on loopback, in threads of this process: for a WSGI application, or a handler of http.server's."""

from __future__ import annotations

import sys
import threading
from http.server import ThreadingHTTPServer
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


class HandlerServer(ThreadingHTTPServer):
    """The server of http.server, which prints nothing about a client that has hung up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback, unless the client is gone: clients are killed at any time here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


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
