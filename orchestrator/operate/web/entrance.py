"""The way in and out: who sends a request, the pages of the login and the log-out, and the provider's call back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import Receive

from orchestrator.errors import SettingsError
from orchestrator.operate.web.attempts import Attempts, WaitingRoom, network_of
from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller, LoginWay, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.login import PARAMETER, Login, local_address, same_secret, without_token
from orchestrator.operate.web.page import LOGIN, LOGOUT, SECURITY_POLICY, USERS_FAULT, Ways, login_page, logout_page
from orchestrator.operate.web.rules import READING, Refusal
from orchestrator.printable import printable

if TYPE_CHECKING:
    from orchestrator.operate.web.oidc import OidcClient

OIDC = "/login/oidc"
CALLBACK = "/login/oidc/callback"
OIDC_COOKIE = "oidc-"
LARGEST_FORM = 16 * 1024
HASHED_AT_ONCE = 2
"""Passwords that are verified at a time: each takes 64 MiB and a core."""
RETRY_AFTER_SECONDS = 10
TOO_MANY = "Too many logins are tried at once; try again in a minute."

TO_SEE = "Log in first: open the address that `orchestrator serve` printed, or send `Authorization: Bearer TOKEN`."
FORM = "application/x-www-form-urlencoded"

_log = logging.getLogger(__name__)


class Entrance:
    """Finds out who sends a request, and answers what has to do with logging in and out.

    Args:
        door: who is let in.
        login: knows who sends a request.
        attempts: slows down who tries tokens and passwords.
        audit: where logins and log-outs are written.
        oidc: None: there is no provider.
    """

    def __init__(
        self, *, door: Door, login: Login, attempts: Attempts, audit: AuditLog, oidc: OidcClient | None = None
    ) -> None:
        self._door = door
        self._login = login
        self._attempts = attempts
        self._audit = audit
        self._oidc = oidc
        self._waiting = WaitingRoom()
        self._hashing = ThreadPoolExecutor(HASHED_AT_ONCE, thread_name_prefix="passwords")

    def known(self, request: Incoming, identity: str | None) -> Caller | None:
        """Who sends this, by a token in the header, the proxy, or the cookie; None: nobody whom we know.

        Args:
            request: whose.
            identity: what the trusted proxy says who it is.
        """
        bearer = self._login.bearer(request)
        if bearer is not None:
            return self._login.caller_of_token(bearer)
        if identity is not None:
            return self._login.caller_of_proxy(identity)
        return self._login.caller_of_cookie(request)

    def opens_metrics(self, request: Incoming) -> bool:
        """Whether it bears METRICS_TOKEN, which opens nothing else."""
        bearer, token = self._login.bearer(request), self._door.metrics_token
        return bearer is not None and token is not None and same_secret(bearer, token)

    async def answer(
        self, request: Incoming, receive: Receive, *, client: str, identity: str | None
    ) -> Response | Caller:
        """Who sends this, or the answer to it.

        Args:
            request: what was asked.
            receive: reads the body of a form.
            client: address that it comes from.
            identity: what the trusted proxy says who it is.
        """
        caller = self.known(request, identity)
        if self._login.bearer(request) is not None:
            return caller or await self._wrong(request, client)
        if identity is not None and caller is None:
            _log.warning("Refused %r of the proxy: TRUSTED_PROXY_ALLOWED does not name it", identity)
            return refused(Refusal(403, "Refused: you are logged in, but nobody has let you in here (yet)."))
        if request.path == LOGOUT and not request.is_websocket:
            return await self._log_out(request, caller, client=client)
        if self._login.is_off or request.is_websocket or identity is not None:
            return caller or self._to_log_in(request)
        tried = dict(request.parameters()).get(PARAMETER)
        if tried is not None and request.method == "GET":
            if self._login.opens(tried):
                return self._opened(request, without_token(request))
            if caller is None:
                return await self._wrong(request, client)
            return redirect(without_token(request))  # an address of an earlier start, opened once more
        if request.path == LOGIN:
            return await self._of_form(request, receive, client)
        if self._oidc and request.path in (OIDC, CALLBACK) and request.method == "GET":
            return await self._by_oidc(self._oidc, request, client=client)
        return caller or self._to_log_in(request)

    def renewed_cookie(self, request: Incoming, caller: Caller) -> str | None:
        """The Set-Cookie header of a session that has become good for longer; None: none has."""
        if caller.way not in (LoginWay.PASSWORD, LoginWay.OIDC):
            return None
        return self._login.renewed_cookie(request)

    async def _of_form(self, request: Incoming, receive: Receive, client: str) -> Response:
        if request.method != "POST":
            return self._to_log_in(request, status=200, target=_target(dict(request.parameters())))
        if request.media_type != FORM:
            return refused(Refusal(415, f"Refused: the form comes as {FORM}."))
        body = await _body(receive)
        if body is None:
            return refused(Refusal(413, "Refused: the form is too large."))
        form = dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        target = _target(form)
        if "password" in form:
            return await self._by_password(request, form, target=target, client=client)
        if self._login.opens(form.get("token", "").strip()):
            return self._opened(request, target)
        return await self._wrong(request, client, target=target)

    async def _by_password(self, request: Incoming, form: Mapping[str, str], *, target: str, client: str) -> Response:
        name, network = form.get("username", "").strip(), network_of(client)
        if self._login.users.fault:
            return self._to_log_in(request, status=503, target=target)
        async with self._attempts.turn(name, network) as is_next:
            if not is_next:
                return self._too_many(request, target)
            with self._waiting.place(network) as has_place:
                if not has_place:
                    return self._too_many(request, target, status=503)
                loop = asyncio.get_running_loop()
                user = await loop.run_in_executor(self._hashing, self._login.users.verified, name, form["password"])
            if user is None:
                _log.warning("Refused a wrong password for %r from %s", name[:64], client)
                if not await self._attempts.failed(name, network):
                    return self._too_many(request, target)
                return self._to_log_in(request, target=target, complaint="That is not the name and the password.")
        self._attempts.succeeded(name, network)
        try:
            cookie = self._login.begin_session_of(request, user)
        except SettingsError as error:
            return _no_sessions(error)
        self._audit.write(Caller(user.name, user.role, way=LoginWay.PASSWORD, address=client), "login")
        return redirect(target, cookie=cookie)

    async def _by_oidc(self, oidc: OidcClient, request: Incoming, *, client: str) -> Response:
        from orchestrator.operate.web.oidc import START_GOOD_SECONDS, OidcFailed

        parameters = dict(request.parameters())
        try:
            if request.path == OIDC:
                uri = f"{self._own_origin(request)}{CALLBACK}"
                start = await oidc.start(redirect_uri=uri, target=_target(parameters))
                return redirect(
                    start.url, cookie=self._login.cookie(request, start.cookie, START_GOOD_SECONDS, purpose=OIDC_COOKIE)
                )
            begun = self._login.cookies(request, purpose=OIDC_COOKIE)
            person = await oidc.finish(cookie=begun[0] if begun else "", parameters=parameters)
            cookie = self._login.begin_session_by_oidc(request, name=person.name, identities=person.identities)
        except OidcFailed as error:
            return self._to_log_in(request, status=403, target="/", complaint=str(error))
        except SettingsError as error:
            return _no_sessions(error)
        if cookie is None:
            _log.warning("Refused %s of the OIDC provider: OIDC_ALLOWED names none of these", person.identities)
            complaint = f"You are {printable(person.name)} there, whom nobody has let in here (yet)."
            return self._to_log_in(request, status=403, target="/", complaint=complaint)
        role = Role(self._door.oidc.allowed.role_of(person.identities) or "") if self._door.oidc else Role.VIEWER
        self._audit.write(Caller(person.name, role, way=LoginWay.OIDC, address=client), "login")
        answer = redirect(person.target, cookie=cookie)
        answer.headers.append("Set-Cookie", self._login.cookie(request, "", 0, purpose=OIDC_COOKIE))
        return answer

    def _own_origin(self, request: Incoming) -> str:
        """How browsers reach us, as far as it can be known: a named host without a port has TLS before it."""
        host = request.host
        is_named = host is not None and host.name in self._door.named_hosts and host.port is None
        scheme = "https" if is_named and self._door.port != 80 else request.scheme
        return f"{scheme}://{request.value('host')}"

    async def _log_out(self, request: Incoming, caller: Caller | None, *, client: str) -> Response:
        if request.method in READING:
            if caller is None:
                return redirect(LOGIN)
            who = f"You are logged in as {caller.name}; the role is {caller.role}."
            can_log_out = caller.way not in (LoginWay.PROXY, LoginWay.OPEN)
            return _page(logout_page(who, can_log_out=can_log_out), 200)
        try:
            cookie = self._login.end_session(request)
        except SettingsError as error:
            return _no_sessions(error)
        if caller:
            self._audit.write(replace(caller, address=client), "logout")
        return redirect(LOGIN, cookie=cookie)

    def _opened(self, request: Incoming, address: str) -> Response:
        return redirect(address, cookie=self._login.set_cookie(request))

    async def _wrong(self, request: Incoming, client: str, *, target: str | None = None) -> Response:
        _log.warning("Refused a wrong token from %s", client)
        if not await self._attempts.failed(network=network_of(client)):
            return self._too_many(request, target)
        return self._to_log_in(request, target=target, complaint="That is not the token.")

    def _too_many(self, request: Incoming, target: str | None, *, status: int = 429) -> Response:
        """The answer to whoever comes while too many others wait, given at once."""
        answer = self._to_log_in(request, status=status, target=target, complaint=TOO_MANY)
        answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return answer

    def _to_log_in(
        self, request: Incoming, *, status: int = 401, target: str | None = None, complaint: str | None = None
    ) -> Response:
        is_page = (request.value("sec-fetch-mode"), request.value("sec-fetch-dest")) == ("navigate", "document")
        if is_page and request.method == "GET" and status == 401 and complaint is None:
            # A browser writes a page that is answered 401 in red on its console.
            return redirect(f"{LOGIN}?{urlencode({'next': without_token(request)})}")
        headers = {"Cache-Control": "no-store", **({"WWW-Authenticate": "Bearer"} if status in (200, 401) else {})}
        if "text/html" not in (request.value("accept") or "") or not (request.method == "GET" or target):
            sentence = f"Refused: {complaint}" if complaint else USERS_FAULT if status == 503 else TO_SEE
            return PlainTextResponse(f"{sentence}\n", max(status, 401), headers=headers)
        ways = Ways(
            password=not self._login.users.is_empty(),
            token=self._door.token is not None,
            oidc=urlsplit(self._door.oidc.issuer).hostname if self._door.oidc else None,
            has_fault=self._login.users.fault is not None,
        )
        page = login_page(ways, target=target or without_token(request), complaint=complaint)
        return _page(page, status, headers)


def refused(refusal: Refusal) -> Response:
    """The answer to what is not let through."""
    return PlainTextResponse(f"{refusal.sentence}\n", refusal.status, headers={"Cache-Control": "no-store"})


def redirect(address: str, *, cookie: str | None = None) -> Response:
    """Send the browser elsewhere.

    Args:
        address: where to.
        cookie: a Set-Cookie header.
    """
    answer = Response(status_code=303, headers={"Location": address, "Cache-Control": "no-store"})
    if cookie:
        answer.headers.append("Set-Cookie", cookie)
    return answer


def _page(page: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    common = {"Cache-Control": "no-store", "Content-Security-Policy": SECURITY_POLICY}
    return HTMLResponse(page, status, headers={**common, **(headers or {})})


def _target(form: Mapping[str, str]) -> str:
    path, _, query = form.get("next", "/").partition("?")
    return local_address(path, parse_qsl(query, keep_blank_values=True))


def _no_sessions(error: SettingsError) -> Response:
    _log.error("Nobody can log in or out: %s", error)
    return refused(
        Refusal(503, "Sessions cannot be written at the moment; the output of `orchestrator serve` says why.")
    )


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
