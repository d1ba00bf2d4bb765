"""The gate before Dagster's webserver: an ASGI application around it that answers what is not let through."""

from __future__ import annotations

import logging
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.login import PARAMETER, Attempts, Login, local_address, without_token
from orchestrator.operate.web.page import SECURITY_POLICY, token_page
from orchestrator.operate.web.rules import LIVE, READING, Refusal, Rules, is_report
from orchestrator.settings.hosts import is_loopback

CALLER = "orchestrator.caller"
"""Where the ASGI scope holds who sends the request; nothing behind the gate answers without it."""

LOGIN = "/login"
LARGEST_FORM = 16 * 1024
TO_SEE = "Log in first: open the address that `orchestrator serve` printed, or send `Authorization: Bearer TOKEN`."

_log = logging.getLogger(__name__)


class Gate:
    """Lets through what may come in, marked with who sends it; one for HTTP and WebSockets.

    Args:
        app: the webserver.
        door: who is let in.
        login: knows who sends a request.
        attempts: slows down who tries tokens.
    """

    def __init__(self, app: ASGIApp, *, door: Door, login: Login, attempts: Attempts) -> None:
        self._app = app
        self._door = door
        self._rules = Rules(door)
        self._login = login
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            raise ValueError(f"nothing is known of ASGI's {scope['type']!r}")
        request = Incoming.of(scope)
        answer = await self._answer(request, scope, receive)
        if isinstance(answer, Caller):
            inside = {**scope, CALLER: answer}
            await self._app(inside, receive, self._secured(request, send) if scope["type"] == "http" else send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the answer is 403
        else:
            await answer(scope, receive, self._secured(request, send))

    async def _answer(self, request: Incoming, scope: Scope, receive: Receive) -> Response | Caller:
        refusal = self._rules.refusal(request)
        if refusal:
            return _refused(refusal)
        if request.path == LIVE and request.method in READING:
            return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})
        client = str((scope.get("client") or ("somebody",))[0])
        bearer = self._login.bearer(request)
        if bearer is not None:
            caller = self._login.caller_of_token(bearer) or await self._wrong(request, client)
        else:
            caller = await self._of_browser(request, receive, client)
        if isinstance(caller, Caller) and is_report(request) and not (caller.by_header and caller.role is Role.ADMIN):
            return _refused(
                Refusal(403, "Refused: reporting an asset's events takes an admin's token in the Authorization header.")
            )
        return caller

    async def _of_browser(self, request: Incoming, receive: Receive, client: str) -> Response | Caller:
        caller = self._login.caller_of_cookie(request)
        if self._login.is_off or request.is_websocket:
            return caller or self._to_log_in(request)
        tried = dict(request.parameters()).get(PARAMETER)
        if tried is not None and request.method == "GET":
            if self._login.opens(tried):
                return self._logged_in(request, without_token(request))
            if caller is None:
                return await self._wrong(request, client)
            return _redirect(without_token(request))  # an address of an earlier start, opened once more
        if request.path == LOGIN:
            return await self._of_form(request, receive, client)
        return caller or self._to_log_in(request)

    async def _of_form(self, request: Incoming, receive: Receive, client: str) -> Response:
        if request.method != "POST":
            return self._to_log_in(request, status=200, target="/")
        if request.media_type != "application/x-www-form-urlencoded":
            return _refused(Refusal(415, "Refused: the form comes as application/x-www-form-urlencoded."))
        body = await _body(receive)
        if body is None:
            return _refused(Refusal(413, "Refused: the form is too large."))
        form = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        path, _, query = form.get("next", "/").partition("?")
        address = local_address(path, parse_qsl(query, keep_blank_values=True))
        if self._login.opens(form.get("token", "").strip()):
            return self._logged_in(request, address)
        return await self._wrong(request, client, target=address)

    def _logged_in(self, request: Incoming, address: str) -> Response:
        answer = _redirect(address)
        answer.headers.append("Set-Cookie", self._login.set_cookie(request))
        return answer

    async def _wrong(self, request: Incoming, client: str, *, target: str | None = None) -> Response:
        _log.warning("Refused a wrong token from %s", client)
        if not await self._attempts.failed():
            return _refused(Refusal(429, "Refused: too many wrong tokens are tried at once; try again in a minute."))
        return self._to_log_in(request, target=target, is_wrong=True)

    def _to_log_in(
        self, request: Incoming, *, status: int = 401, target: str | None = None, is_wrong: bool = False
    ) -> Response:
        headers = {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
        if "text/html" not in (request.value("accept") or "") or not (request.method == "GET" or target):
            sentence = "Refused: that is not a token of this installation." if is_wrong else TO_SEE
            return PlainTextResponse(f"{sentence}\n", 401, headers=headers)
        page = token_page(target=target or without_token(request), is_wrong=is_wrong)
        return HTMLResponse(page, status, headers={**headers, "Content-Security-Policy": SECURITY_POLICY})

    def _secured(self, request: Incoming, send: Send) -> Send:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._secure(request, MutableHeaders(scope=message))
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


def _refused(refusal: Refusal) -> Response:
    return PlainTextResponse(f"{refusal.sentence}\n", refusal.status, headers={"Cache-Control": "no-store"})


def _redirect(address: str) -> Response:
    return Response(status_code=303, headers={"Location": address, "Cache-Control": "no-store"})


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None: it is larger than a form of ours."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > LARGEST_FORM:
            return None
        if not message.get("more_body", False):
            return bytes(body)
