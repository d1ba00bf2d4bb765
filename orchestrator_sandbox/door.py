"""The door of a server on loopback: loopback keeps other computers out, but no page in the user's own browser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REFUSED = "The sandbox takes no orders from web pages: call {address} from a program.\n"
MISDIRECTED = "This is the sandbox at {address}, and nothing else.\n"


@dataclass(frozen=True)
class SandboxDoor:
    """WSGI middleware: whoever asks must ask for the server's own address, and be no script or form of a web page.

    A browser says in `Origin` which page a request comes from, except when it merely loads something. It asks
    by the page's name when that name was made to lead here (DNS rebinding).

    Attributes:
        app: what answers the others.
    """

    app: WSGIApplication

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        address = f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
        if environ.get("HTTP_HOST") != address:
            return refuse(start_response, "421 Misdirected Request", MISDIRECTED.format(address=address))
        if "HTTP_ORIGIN" in environ:
            return refuse(start_response, "403 Forbidden", REFUSED.format(address=address))
        return self.app(environ, start_response)


def refuse(
    start_response: StartResponse, status: str, body: str, *, content_type: str = "text/plain"
) -> Iterable[bytes]:
    """Answer with a refusal, and hang up: the request's body may be unread."""
    start_response(status, [("Content-Type", f"{content_type}; charset=utf-8"), ("Connection", "close")])
    return [body.encode()]
