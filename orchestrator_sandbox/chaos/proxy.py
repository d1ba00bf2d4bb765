"""A proxy in front of a sandbox server: takes it away, makes it slow or mad, and holds a request up on order."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self

import requests

from orchestrator_sandbox.processes.child import free_port
from orchestrator_sandbox.web import HandlerServer

HOLD_SECONDS = 6.0
"""A request is held up for no longer: less than any client of ours waits for an answer."""

OUTAGE_SECONDS = 60.0
RESPITE_SECONDS = 15.0
UPSTREAM_SECONDS = 60
SLOW_SECONDS = 4.0
PAGE = b"<html><body><h1>We'll be right back</h1></body></html>"
OWN_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "content-encoding", "keep-alive"})


class Weather(StrEnum):
    """How a server misbehaves."""

    REFUSING = "nothing listens"
    SLOW = "each answer takes seconds"
    HTML = "a proxy's page instead of an answer"


@dataclass(frozen=True)
class Request:
    """What a client asks, as far as somebody may want to hold it up."""

    method: str
    path: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What a request gets instead of the truth."""

    status: int
    body: bytes
    content_type: str


@dataclass
class Toll:
    """How many requests a fault has met so far."""

    met: int = 0


@dataclass(frozen=True)
class _Spell:
    weather: Weather
    toll: Toll


@dataclass(frozen=True)
class _Spoilt:
    applies: Callable[[Request], bool]
    answer: Answer
    toll: Toll


@dataclass(frozen=True)
class _Hold:
    applies: Callable[[Request], bool]
    over: threading.Event


class Proxy:
    """Forwards to `upstream`, unless told otherwise.

    Attributes:
        url: where clients find it, also while it refuses connections.
        upstream: the real server; set before the first request.
    """

    def __init__(self) -> None:
        self.upstream = ""
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._lock = threading.Lock()
        self._spells: list[_Spell] = []
        self._bad_since = self._bad_until = 0.0
        self._holds: list[_Hold] = []
        self._spoilt: list[_Spoilt] = []
        self._closing = threading.Event()
        self._server: HandlerServer | None = None
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._lock:
            self._hang_up()

    @contextlib.contextmanager
    def weather(self, weather: Weather) -> Iterator[Toll]:
        """Misbehave as long as the context lasts; of several ways, the latest counts, but refusing over all."""
        spell = _Spell(weather, Toll())
        with self._lock:
            if not self._spells and time.monotonic() > self._bad_until + RESPITE_SECONDS:
                self._bad_since = time.monotonic()
            self._spells.append(spell)
            if weather is Weather.REFUSING:
                self._listen()  # a closed port does not tell who was refused: the first request is taken, and dropped
        try:
            yield spell.toll
        finally:
            with self._lock:
                self._spells = [other for other in self._spells if other is not spell]
                self._bad_until = time.monotonic()
                if not self._of(Weather.REFUSING) and not self._closing.is_set():
                    self._listen()

    def bearable_seconds(self) -> float:
        """How much longer it may misbehave: outages that follow one another are one, of a minute at most."""
        with self._lock:
            now = time.monotonic()
            in_one_go = self._spells or now < self._bad_until + RESPITE_SECONDS
            return OUTAGE_SECONDS - (now - self._bad_since if in_one_go else 0)

    @contextlib.contextmanager
    def held(self, applies: Callable[[Request], bool]) -> Iterator[None]:
        """Let such requests wait, for some seconds each, until the context ends."""
        hold = _Hold(applies, threading.Event())
        self._holds.append(hold)
        try:
            yield
        finally:
            self._holds.remove(hold)
            hold.over.set()

    @contextlib.contextmanager
    def spoilt(
        self, answer: Answer, *, times: int, applies: Callable[[Request], bool] = lambda _: True
    ) -> Iterator[Toll]:
        """Give the next such requests this answer, as long as the context lasts."""
        toll = Toll()
        with self._lock:
            self._spoilt += [_Spoilt(applies, answer, toll) for _ in range(times)]
        try:
            yield toll
        finally:
            with self._lock:
                self._spoilt = [other for other in self._spoilt if other.toll is not toll]

    def _spoilt_answer(self, request: Request) -> Answer | None:
        with self._lock:
            for place, spoilt in enumerate(self._spoilt):
                if spoilt.applies(request):
                    del self._spoilt[place]
                    spoilt.toll.met += 1
                    return spoilt.answer
        return None

    def _meet(self) -> Weather | None:
        """The weather that a request meets now."""
        with self._lock:
            if not self._spells:
                return None
            refusing = self._of(Weather.REFUSING)
            weather = Weather.REFUSING if refusing else self._spells[-1].weather
            for spell in self._of(weather):
                spell.toll.met += 1
            if refusing:
                self._hang_up()
            return weather

    def _of(self, weather: Weather) -> list[_Spell]:
        return [spell for spell in self._spells if spell.weather is weather]

    def _listen(self) -> None:
        if self._server is None:
            self._server = HandlerServer(("127.0.0.1", self._port), self._handler())
            self._server.daemon_threads = True
            threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="proxy", daemon=True
            ).start()

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # clients are killed in this campaign
                    super().handle()

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PATCH(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, body)
                for hold in list(proxy._holds):
                    if hold.applies(request):
                        hold.over.wait(HOLD_SECONDS)
                if answer := proxy._spoilt_answer(request):
                    self._answer(answer.status, {"Content-Type": answer.content_type}, answer.body)
                    return
                weather = proxy._meet()
                if weather is Weather.SLOW:
                    proxy._closing.wait(SLOW_SECONDS)
                if weather is Weather.HTML:
                    self._answer(200, {"Content-Type": "text/html"}, PAGE)
                elif weather is not Weather.REFUSING:  # which gives no answer, as a server that has just died
                    self._forward(request)

            def _forward(self, request: Request) -> None:
                headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN_HEADERS}
                with requests.Session() as session:
                    session.trust_env = False
                    try:
                        answer = session.request(
                            request.method,
                            f"{proxy.upstream}{request.path}",
                            data=request.body,
                            headers=headers,
                            timeout=UPSTREAM_SECONDS,
                            allow_redirects=False,
                        )
                    except requests.RequestException:
                        return  # the server is away: the client sees its connection closed
                kept = {name: text for name, text in answer.headers.items() if name.lower() not in OWN_HEADERS}
                self._answer(answer.status_code, kept, answer.content)

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
