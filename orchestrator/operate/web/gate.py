"""The gate before Dagster's webserver: an ASGI application around it that answers what is not let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.entrance import Entrance, refused
from orchestrator.operate.web.health import HealthPage
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.metrics import MetricsPage
from orchestrator.operate.web.proxy import Proxied, through_proxy
from orchestrator.operate.web.rules import LIVE, METRICS, READING, READY, Refusal, Rules, is_report
from orchestrator.settings.hosts import is_loopback

CALLER = "orchestrator.caller"
"""Where the ASGI scope holds who sends the request; nothing behind the gate answers without it."""


class Gate:
    """Lets through what may come in, marked with who sends it; one for HTTP and WebSockets.

    Args:
        app: the webserver.
        door: who is let in.
        entrance: finds out who sends a request.
        audit: where events that are reported of assets are written.
        health: answers whether we are ready.
        metrics: answers Prometheus.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        door: Door,
        entrance: Entrance,
        audit: AuditLog,
        health: HealthPage,
        metrics: MetricsPage,
    ) -> None:
        self._app = app
        self._door = door
        self._rules = Rules(door)
        self._entrance = entrance
        self._audit = audit
        self._health = health
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"nothing is known of ASGI's {scope['type']!r}")
        proxied = through_proxy(scope, self._door.proxy)
        request = Incoming.of(proxied.scope)
        answer = await self._answer(request, proxied, receive)
        if isinstance(answer, Caller):
            inside = {**proxied.scope, CALLER: answer}
            if scope["type"] == "http":
                cookie = self._entrance.renewed_cookie(request, answer)
                await self._app(inside, receive, self._secured(request, send, cookie))
            else:
                socket = _WatchedSocket(lambda: self._entrance.known(request, proxied.identity), receive, send)
                await self._app(inside, socket.receive, socket.send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the answer is 403
        else:
            await answer(proxied.scope, receive, self._secured(request, send))

    async def _answer(self, request: Incoming, proxied: Proxied, receive: Receive) -> Response | Caller:
        refusal = proxied.refusal or self._rules.refusal(request)
        if refusal:
            return refused(refusal)
        if request.path == LIVE and request.method in READING:
            return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})
        client = str((proxied.scope.get("client") or ("somebody",))[0])
        if request.path == READY and request.method in READING and not request.values("authorization"):
            return await self._health.answer(self._entrance.known(request, proxied.identity))
        accept = request.value("accept") or ""
        if request.path == METRICS and request.method in READING and self._entrance.opens_metrics(request):
            return await self._metrics.answer(accept)
        answer = await self._entrance.answer(request, receive, client=client, identity=proxied.identity)
        if not isinstance(answer, Caller):
            return answer
        caller = replace(answer, address=client)
        if request.path == READY and request.method in READING:  # a token, which has been tried like any other
            return await self._health.answer(caller)
        if request.path == METRICS and request.method in READING:
            return await self._metrics.answer(accept)
        if is_report(request):
            if not (caller.by_header and caller.role is Role.ADMIN):
                return refused(
                    Refusal(
                        403, "Refused: reporting an asset's events takes an admin's token in the Authorization header."
                    )
                )
            self._audit.write(caller, "report", of=request.path)
        return caller

    def _secured(self, request: Incoming, send: Send, cookie: str | None = None) -> Send:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                self._secure(request, headers)
                if cookie:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        return send_secured

    def _secure(self, request: Incoming, headers: MutableHeaders) -> None:
        """Add what tells the browser to keep others out."""
        ancestors = " ".join(self._door.frame_ancestors) or "'none'"
        policies = [
            directive.strip()
            for directive in headers.get("Content-Security-Policy", "").split(";")
            if directive.strip() and not directive.strip().casefold().startswith("frame-ancestors")
        ]
        headers["Content-Security-Policy"] = "; ".join([*policies, f"frame-ancestors {ancestors}"])
        if not self._door.frame_ancestors:
            headers["X-Frame-Options"] = "DENY"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        host = request.host
        is_local = host is not None and is_loopback(host.name)
        if request.scheme == "https" or is_local:
            headers["Cross-Origin-Opener-Policy"] = "same-origin"  # elsewhere browsers complain that they ignore it
        if request.scheme == "https" and not is_local:
            # For a host, not for a port: on localhost it would break what else is there.
            headers["Strict-Transport-Security"] = "max-age=31536000"


class _WatchedSocket:
    """A WebSocket that ends when its caller is known no more: logged out, removed, or of another role.

    Args:
        known: who it is now.
        receive: ASGI's.
        send: likewise.
    """

    def __init__(self, known: Callable[[], Caller | None], receive: Receive, send: Send) -> None:
        self._known = known
        self._first = known()
        self._receive = receive
        self._send = send
        self._is_over = False

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        return {"type": "websocket.disconnect", "code": 1008} if await self._ends() else message

    async def send(self, message: Message) -> None:
        """Send, unless it is over."""
        if message["type"] == "websocket.send" and await self._ends():
            return
        if not self._is_over:
            await self._send(message)

    async def _ends(self) -> bool:
        if not self._is_over and self._known() != self._first:
            self._is_over = True
            await self._send({"type": "websocket.close", "code": 1008})
        return self._is_over
