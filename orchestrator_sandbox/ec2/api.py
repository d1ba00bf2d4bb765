"""The HTTP side of the sandbox's EC2 API: moto's server behind a door, and errors that AWS gives at times."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from orchestrator_sandbox.door import SandboxDoor, refuse
from orchestrator_sandbox.ec2.signature import SandboxCredentials

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
IDLE_SECONDS = 10
REASONS = {400: "Bad Request", 403: "Forbidden", 500: "Internal Server Error", 503: "Service Unavailable"}
MAX_BYTES = 2**20
"""Of a request: AWS takes 16 KB of user-data, and little else."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AwsFault:
    """An error that AWS answers with.

    Attributes:
        code: such as `InsufficientInstanceCapacity`
            (https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html).
        status: the HTTP status: 400 for a client's error, 500 or 503 for AWS's own.
        message: what a human reads.
    """

    code: str
    status: int = 400
    message: str = "The sandbox was asked to answer so."

    def body(self) -> str:
        """The answer, in EC2's XML."""
        error = f"<Code>{escape(self.code)}</Code><Message>{escape(self.message)}</Message>"
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Response><Errors><Error>{error}</Error></Errors><RequestID>sandbox</RequestID></Response>"
        )


class AwsFaults:
    """The errors that the next calls get."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, AwsFault]] = []

    def answer(self, action: str, fault: AwsFault, *, times: int = 1) -> None:
        """Answer the next calls of an action with an error.

        Args:
            action: such as `RunInstances`; `*` for any.
            fault: the error.
            times: for how many calls.
        """
        with self._lock:
            self._waiting += [(action, fault)] * times

    def clear(self) -> None:
        """Answer as usual again."""
        with self._lock:
            self._waiting.clear()

    def take(self, action: str) -> AwsFault | None:
        """The error that this call gets, which is used up."""
        with self._lock:
            for entry in self._waiting:
                if entry[0] in (action, "*"):
                    self._waiting.remove(entry)
                    return entry[1]
        return None


STRANGER = AwsFault(
    "AuthFailure",
    401,
    "AWS was not able to validate the provided access credentials (the sandbox has its own, new at each start).",
)


@dataclass(frozen=True)
class CredentialsMiddleware:
    """WSGI middleware: takes only what is signed with this sandbox's credentials.

    Attributes:
        app: what answers that.
        credentials: those.
    """

    app: WSGIApplication
    credentials: SandboxCredentials

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one call."""
        if not self.credentials.knows(environ):
            return self._refuse(start_response)
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdecimal():
            return refuse(start_response, "400 Bad Request", "Content-Length is no number.\n")
        if int(length) > MAX_BYTES:
            return refuse(start_response, "413 Content Too Large", f"The sandbox takes {MAX_BYTES} bytes.\n")
        body = environ["wsgi.input"].read(int(length))
        if not self.credentials.signed(environ, body):
            return self._refuse(start_response)
        environ["wsgi.input"] = io.BytesIO(body)
        return self.app(environ, start_response)

    @staticmethod
    def _refuse(start_response: StartResponse) -> Iterable[bytes]:
        return refuse(start_response, "401 Unauthorized", STRANGER.body(), content_type="text/xml")


@dataclass(frozen=True)
class AccountMiddleware:
    """WSGI middleware: one call at a time, in an AWS account of our own, with the faults asked for.

    Attributes:
        app: moto.
        account: the AWS account ID of everything that comes in here.
        lock: held during a call, since moto's state is changed by the machines too.
        faults: what to answer instead.
    """

    app: WSGIApplication
    account: str
    lock: AbstractContextManager[object]
    faults: AwsFaults

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one call."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        action = parse_qs(body.decode(errors="replace")).get("Action", [""])[0]
        if fault := self.faults.take(action):
            start_response(f"{fault.status} {REASONS[fault.status]}", [("Content-Type", "text/xml")])
            return [fault.body().encode()]
        environ["wsgi.input"] = io.BytesIO(body)
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self.account
        with self.lock:
            return list(self.app(environ, start_response))


class ApiServer:
    """An HTTP server in a thread of its own, until it is closed.

    Args:
        app: what answers.
        credentials: what a request must be signed with.
        port: 0 for any.
    """

    def __init__(
        self,
        app: WSGIApplication,
        credentials: SandboxCredentials,
        *,
        port: int,
        handler: type[WSGIRequestHandler],
    ) -> None:
        guarded = SandboxDoor(CredentialsMiddleware(app, credentials))
        self._server = ThreadedWSGIServer(HOST, port, guarded, _quiet(handler))
        self._server.daemon_threads = False  # so that closing waits for the calls under way
        self._thread = threading.Thread(target=self._server.serve_forever, name="EC2 API", daemon=True)
        self._thread.start()
        self.url = f"http://{HOST}:{self._server.server_port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _quiet(handler: type[WSGIRequestHandler]) -> type[WSGIRequestHandler]:
    """The handler without a line on standard error for each call, and without connections that stay idle for long."""

    class Handler(handler):  # type: ignore[valid-type, misc]
        timeout = IDLE_SECONDS

        def log(self, type: str, message: str, *args: object) -> None:
            log.debug(message, *args)

    return Handler
