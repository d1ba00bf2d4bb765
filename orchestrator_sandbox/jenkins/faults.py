"""Ways in which the sandbox's Jenkins can misbehave for a while."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flask import Response, request


@dataclass(frozen=True)
class JenkinsFault:
    """What is answered instead of the truth.

    Attributes:
        status: HTTP status; None: the true answer is given (after the delay).
        body: the text.
        content_type: its type.
        headers: more headers, such as Location.
        delay_seconds: how long the answer takes.
        cut: the answer breaks off: fewer bytes come than were announced.
        hang_up: the connection is closed without an answer.
        path: only requests whose path begins like this.
    """

    status: int | None = 503
    body: str = "<html><body><h1>503 Service Unavailable</h1></body></html>"
    content_type: str = "text/html;charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0
    cut: bool = False
    hang_up: bool = False
    path: str = "/"


class JenkinsFaults:
    """The fault that is on, if any; give `answer` to Flask's `before_request`."""

    def __init__(self) -> None:
        self._fault: JenkinsFault | None = None
        self._ended = threading.Event()
        self._ended.set()

    @contextlib.contextmanager
    def answer_with(self, fault: JenkinsFault) -> Iterator[None]:
        """Misbehave as long as this context lasts."""
        self.start(fault)
        try:
            yield
        finally:
            self.stop()

    def start(self, fault: JenkinsFault) -> None:
        """Misbehave from now on."""
        self._ended.clear()
        self._fault = fault

    def stop(self) -> None:
        """Behave again; a delay that is under way ends."""
        self._fault = None
        self._ended.set()

    def answer(self) -> Response | None:
        """The false answer to the current request, or None."""
        fault = self._fault
        if fault is None or not request.path.startswith(fault.path):
            return None
        if fault.delay_seconds:
            self._ended.wait(fault.delay_seconds)
        if fault.hang_up:
            request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if fault.status is None:
            return None
        answer = Response(fault.body, fault.status, dict(fault.headers), content_type=fault.content_type)
        if fault.cut:
            answer.headers["Content-Length"] = str(len(fault.body.encode()) + 1000)
        return answer
