"""Proxies that misbehave on order, as servers and networks do: one for HTTP, one for any TCP."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from orchestrator_sandbox.web import HandlerServer

HOST = "127.0.0.1"
HOLD_SECONDS = 6.0
"""A request is held up for no longer: less than any client of ours waits for an answer."""

OUTAGE_SECONDS = 60.0
"""How long a server may be away in one go: our clients promise to bear a minute."""
RESPITE_SECONDS = 15.0
"""Two outages with less than this between them are one for a client that waits longer from try to try."""
UPSTREAM_SECONDS = 60
SLOW_SECONDS = 4.0
PAGE = "<html><body><h1>We'll be right back</h1></body></html>"
REQUESTS_KEPT = 1000
POLL_SECONDS = 0.05
HOP_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "content-encoding", "keep-alive"})
"""Headers of one connection, not of the request: each side of the proxy has its own."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultMode(StrEnum):
    """What becomes of a request instead of being forwarded."""

    REFUSE = "nothing listens: the first request is accepted and dropped, the next ones find the port closed"
    ANSWER = "it gets another answer"
    HANG_UP = "the connection is closed without an answer"
    LOSE_ANSWER = "it is forwarded, and its answer lost"
    STALL = "it gets no answer, and the connection stays open"
    SLOW = "it is forwarded after some seconds"


@dataclass(frozen=True)
class ProxyFault:
    """How a request is spoilt; the fields after `mode` are those of another answer."""

    mode: FaultMode = FaultMode.ANSWER
    status: int = 200
    body: str = ""
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)


REFUSED = ProxyFault(FaultMode.REFUSE)
HUNG_UP = ProxyFault(FaultMode.HANG_UP)
ANSWER_LOST = ProxyFault(FaultMode.LOSE_ANSWER)
STALLED = ProxyFault(FaultMode.STALL)
SLOW = ProxyFault(FaultMode.SLOW)
HTML_PAGE = ProxyFault(body=PAGE)
"""What a load balancer shows while the server behind it is away."""


@dataclass(frozen=True)
class Request:
    """What a client asks."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass
class HitCount:
    """How many requests a fault has met so far."""

    count: int = 0


@dataclass
class _ActiveFault:
    """A fault that is on; `remaining` requests get it, None: all of them."""

    fault: ProxyFault
    applies: Callable[[Request], bool]
    remaining: int | None
    hits: HitCount = field(default_factory=HitCount)


@dataclass(frozen=True)
class _Hold:
    applies: Callable[[Request], bool]
    over: threading.Event = field(default_factory=threading.Event)


def _any_request(_: Request) -> bool:
    return True


class FaultyProxy:
    """An HTTP server that forwards to `upstream`, but for the faults that are on.

    Args:
        upstream: address of the real server; may be set later, before the first request.
        certificate: PEM file with certificate and key, to talk TLS.
        client_ca: PEM file; clients have to show a certificate that it signed.

    Attributes:
        url: where clients find it, also while it refuses connections.
        faults: one for each of the next requests, whatever they ask; they come before all others.
        standing: the fault of every request that meets no other; None: it is forwarded.
        seen: the newest requests, the oldest first.
    """

    def __init__(self, upstream: str = "", *, certificate: Path | None = None, client_ca: Path | None = None) -> None:
        self.upstream = upstream.rstrip("/")
        self.faults: deque[ProxyFault] = deque()
        self.standing: ProxyFault | None = None
        self.seen: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self._certificate = certificate
        self._client_ca = client_ca
        self._lock = threading.Lock()
        self._active: list[_ActiveFault] = []
        self._holds: list[_Hold] = []
        self._away_since = self._away_until = 0.0
        self._closing = threading.Event()
        self._port = 0
        self._server: HandlerServer | None = None
        self._listen()
        self.url = f"{'https' if certificate else 'http'}://{HOST}:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with self._lock:
            self._stop_listening()

    def requests_for(self, endpoint: str) -> int:
        """How many of the requests in `seen` have a path that ends like this."""
        return sum(request.path.partition("?")[0].endswith(endpoint) for request in self.seen)

    @contextlib.contextmanager
    def faulty(
        self,
        fault: ProxyFault,
        *,
        times: int | None = None,
        applies: Callable[[Request], bool] = _any_request,
    ) -> Iterator[HitCount]:
        """Spoil requests as long as the context lasts.

        Of several faults that are on, those with a number come first, the oldest before all; then a refusal; then the
        newest.

        Args:
            fault: how. A refusal is for all requests.
            times: how many requests; None: all of them, which makes it an outage.
            applies: which requests.
        """
        active = _ActiveFault(fault, applies, times)
        with self._lock:
            if times is None and not self._outages() and time.monotonic() > self._away_until + RESPITE_SECONDS:
                self._away_since = time.monotonic()
            self._active.append(active)
            if fault.mode is FaultMode.REFUSE:
                self._listen()  # a closed port does not tell who was refused: the first request is taken, and dropped
        try:
            yield active.hits
        finally:
            with self._lock:
                self._active = [other for other in self._active if other is not active]
                if times is None:
                    self._away_until = time.monotonic()
                if not self._refusals() and not self._closing.is_set():
                    self._listen()

    @contextlib.contextmanager
    def held(self, applies: Callable[[Request], bool]) -> Iterator[None]:
        """Let such requests wait, for some seconds each, until the context ends."""
        hold = _Hold(applies)
        with self._lock:
            self._holds.append(hold)
        try:
            yield
        finally:
            with self._lock:
                self._holds = [other for other in self._holds if other is not hold]
            hold.over.set()

    def bearable_seconds(self) -> float:
        """How much longer an outage may last: outages that follow one another are one, of a minute at most."""
        with self._lock:
            now = time.monotonic()
            in_one_go = self._outages() or now < self._away_until + RESPITE_SECONDS
            return OUTAGE_SECONDS - (now - self._away_since if in_one_go else 0)

    def _outages(self) -> list[_ActiveFault]:
        return [active for active in self._active if active.remaining is None]

    def _refusals(self) -> list[_ActiveFault]:
        return [active for active in self._outages() if active.fault.mode is FaultMode.REFUSE]

    def _wait_while_held(self, request: Request) -> None:
        with self._lock:
            holds = list(self._holds)
        for hold in holds:
            if hold.applies(request):
                hold.over.wait(HOLD_SECONDS)

    def _fault_of(self, request: Request) -> ProxyFault | None:
        """The fault that a request meets, which counts it."""
        with self._lock:
            if self.faults:
                return self.faults.popleft()
            for active in self._active:
                if active.remaining and active.applies(request):
                    active.remaining -= 1
                    active.hits.count += 1
                    return active.fault
            outages = self._refusals() or [active for active in self._outages() if active.applies(request)]
            if not outages:
                return self.standing
            fault = outages[-1].fault
            for active in outages:
                active.hits.count += active.fault == fault
            if fault.mode is FaultMode.REFUSE:
                self._stop_listening()
            return fault

    def _listen(self) -> None:
        if self._server is None:
            self._server = HandlerServer((HOST, self._port), self._handler())
            self._server.daemon_threads = True
            self._port = self._server.server_port
            if self._certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self._certificate)
                if self._client_ca is not None:
                    context.verify_mode = ssl.CERT_REQUIRED
                    context.load_verify_locations(self._client_ca)
                self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, name="proxy", daemon=True
            ).start()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # clients are killed in fault campaigns
                    super().handle()

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PATCH(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, dict(self.headers), body)
                proxy.seen.append(request)
                proxy._wait_while_held(request)
                fault = proxy._fault_of(request)
                match fault.mode if fault else None:
                    case None:
                        self._forward(request)
                    case FaultMode.SLOW:
                        proxy._closing.wait(SLOW_SECONDS)
                        self._forward(request)
                    case FaultMode.LOSE_ANSWER:
                        proxy._ask_upstream(request)
                    case FaultMode.STALL:
                        proxy._closing.wait()
                    case FaultMode.ANSWER:
                        assert fault is not None  # noqa: S101 - for the type checker
                        headers = {"Content-Type": fault.content_type, **fault.headers}
                        self._answer(fault.status, headers, fault.body.encode())

            def _forward(self, request: Request) -> None:
                if (answer := proxy._ask_upstream(request)) is not None:
                    headers = {name: text for name, text in answer.headers.items() if name.lower() not in HOP_HEADERS}
                    self._answer(answer.status_code, headers, answer.content)

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Requests are not worth a line each."""

        return Handler

    def _ask_upstream(self, request: Request) -> requests.Response | None:
        """The real answer; None when the server is away, and the client is to see its connection closed."""
        headers = {name: text for name, text in request.headers.items() if name.lower() not in HOP_HEADERS}
        with requests.Session() as session:
            session.trust_env = False
            try:
                return session.request(
                    request.method,
                    f"{self.upstream}{request.path}",
                    data=request.body,
                    headers=headers,
                    timeout=UPSTREAM_SECONDS,
                    allow_redirects=False,
                )
            except requests.RequestException:
                return None


class TcpRelay:
    """A TCP port that leads to another one, over a network that can be made to fail.

    Args:
        target_port: where it leads.
        host: the address of that.

    Attributes:
        target_port: where the next connections lead.
        port: where it listens, also after it was away.
        silent: it accepts bytes and connections, passes nothing on, and closes nothing, as a host does that was taken
            away. (A sandbox machine that ends closes its connections, because its processes end.)
        delay_seconds: what each direction takes longer than it would; twice that is added to a round trip.
    """

    def __init__(self, target_port: int, host: str = HOST) -> None:
        self.target_port = target_port
        self._target_host = host
        self._server: socketserver.ThreadingTCPServer | None = None
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self.port = 0
        self.silent = False
        self.delay_seconds = 0.0
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Listen, after `close` on the same port again."""
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                relay._relay(self.request)

        self._server = _TcpServer((HOST, self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": POLL_SECONDS}, name="relay", daemon=True
        ).start()

    def close(self) -> None:
        """Stop listening, and break what is open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Break all connections with a reset."""
        with self._lock:
            self._cut.set()
            self._cut = threading.Event()

    def _relay(self, client: socket.socket) -> None:
        with self._lock:
            cut = self._cut
        with contextlib.ExitStack() as sockets:
            try:
                server = sockets.enter_context(socket.create_connection((self._target_host, self.target_port)))
            except OSError:
                self._wait_while_silent(cut)
                return
            sockets.enter_context(client)
            with contextlib.suppress(OSError):  # one side is gone: the other one is closed, too
                self._copy(client, server, cut)
            if cut.is_set():
                for side in (client, server):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)

    def _copy(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        other = {client: server, server: client}
        while not cut.is_set():
            readable, _, _ = select.select([client, server], [], [], POLL_SECONDS)
            for side in readable:
                data = side.recv(1 << 16)
                if not data:
                    self._wait_while_silent(cut)
                    return
                if not self.silent:
                    time.sleep(self.delay_seconds)
                    other[side].sendall(data)

    def _wait_while_silent(self, cut: threading.Event) -> None:
        while self.silent and not cut.wait(POLL_SECONDS):
            pass


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
