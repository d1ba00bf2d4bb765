"""Who may come in: by a token in the address, as Jupyter does it, or a session; programs send a token in a header."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from orchestrator.operate.web.caller import UI_USER, Caller, LoginWay, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.sessions import SESSION_SECONDS, LoginSession, Sessions
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.operate.web.users import User, Users
from orchestrator.printable import printable
from orchestrator.settings.hosts import DEFAULT_PORTS

COOKIE_SECONDS = 7 * 24 * 3600
PARAMETER = "token"
_PURPOSE = b"orchestrator: cookie of the UI, 1"


@dataclass(frozen=True)
class Login:
    """Knows who sends a request.

    The cookie of the token is not the token: it holds until when it is good, under a MAC whose key comes of the token.
    So it outlives a restart with the same UI_TOKEN, and a new token ends it. The cookie of a person is a session's ID.

    Args:
        door: holds the token.
        machines: the tokens of `orchestrator token add`.
        users: those of `orchestrator user add`.
        sessions: of people who have logged in.
        now: seconds since 1970.
    """

    door: Door
    machines: MachineTokens
    users: Users
    sessions: Sessions
    now: Callable[[], float] = time.time

    @property
    def is_off(self) -> bool:
        """Whether no token is asked for."""
        return not self.door.asks_for_token

    def opens(self, token: str) -> bool:
        """Whether this is the token of the UI."""
        return self.door.token is not None and same_secret(token, self.door.token)

    def bearer(self, request: Incoming) -> str | None:
        """The token in the Authorization header; None: there is no bearer token in it."""
        scheme, _, token = (request.value("authorization") or "").strip().partition(" ")
        return token.strip() if scheme.casefold() == "bearer" else None

    def caller_of_token(self, token: str) -> Caller | None:
        """Who has this token; None: nobody."""
        if self.opens(token):
            return Caller(UI_USER, Role.ADMIN, by_header=True)
        machine = self.machines.find(token)
        return Caller(machine.name, machine.role, by_header=True) if machine else None

    def caller_of_cookie(self, request: Incoming) -> Caller | None:
        """Who has this cookie, or anybody where no token is asked for; None: nobody."""
        if self.is_off:
            return Caller(UI_USER, Role.ADMIN, way=LoginWay.OPEN)
        values = _cookies(request, self.cookie_name(request))
        if any(self._is_good(value) for value in values):
            return Caller(UI_USER, Role.ADMIN)
        sessions = filter(None, map(self.sessions.find, values))
        return next(filter(None, map(self._caller_of_session, sessions)), None)

    def caller_of_proxy(self, identity: str) -> Caller | None:
        """Who the trusted proxy says it is, if he is allowed in."""
        role = self.door.proxy_allowed.role_of([identity])
        return Caller(printable(identity), Role(role), way=LoginWay.PROXY) if role else None

    def begin_session_of(self, request: Incoming, user: User) -> str:
        """Log a user in whose password was right, and return the Set-Cookie header.

        Raises:
            SettingsError: sessions cannot be written.
        """
        return self._begin(request, name=user.name, way=LoginWay.PASSWORD, identities=(), version=user.version)

    def begin_session_by_oidc(self, request: Incoming, *, name: str, identities: tuple[str, ...]) -> str | None:
        """Log in whom the OIDC provider knows, and return the Set-Cookie header; None: he is not allowed in.

        Args:
            request: the browser's.
            name: what to call him.
            identities: by which he may be allowed.

        Raises:
            SettingsError: sessions cannot be written.
        """
        if self.door.oidc is None or not self.door.oidc.allowed.role_of(identities):
            return None
        version = self._version_of_oidc()
        return self._begin(request, name=name, way=LoginWay.OIDC, identities=identities, version=version)

    def renewed_cookie(self, request: Incoming) -> str | None:
        """The Set-Cookie header of a session that its use has made good for longer; None: of no session."""
        for value in _cookies(request, self.cookie_name(request)):
            session = self.sessions.find(value)
            if session and self._caller_of_session(session) and self.sessions.renewed(session):
                return self.cookie(request, value, SESSION_SECONDS)
        return None

    def end_session(self, request: Incoming) -> str:
        """End the sessions of this browser, and return the Set-Cookie header that takes the cookie away.

        Raises:
            SettingsError: sessions cannot be written.
        """
        for value in _cookies(request, self.cookie_name(request)):
            if self.sessions.find(value):
                self.sessions.end(value)
        return self.cookie(request, "", 0)

    def _begin(self, request: Incoming, *, name: str, way: LoginWay, identities: tuple[str, ...], version: str) -> str:
        session_id = self.sessions.begin(name=name, way=way, identities=identities, version=version)
        return self.cookie(request, session_id, SESSION_SECONDS)

    def _caller_of_session(self, session: LoginSession) -> Caller | None:
        """Who it is, and what he may do now: not what he might when he logged in."""
        if session.way is LoginWay.PASSWORD:
            user = self.users.find(session.name)
            is_same = user is not None and hmac.compare_digest(user.version, session.version)
            return Caller(user.name, user.role, way=session.way) if user and is_same else None
        if session.way is LoginWay.OIDC and self.door.oidc and session.version == self._version_of_oidc():
            role = self.door.oidc.allowed.role_of(session.identities)
            return Caller(session.name, Role(role), way=session.way) if role else None
        return None

    def _version_of_oidc(self) -> str:
        """Another one for another provider, whose people are others."""
        oidc = self.door.oidc
        return hashlib.sha256(f"{oidc.issuer}\0{oidc.client_id}".encode()).hexdigest() if oidc else ""

    def cookie_name(self, request: Incoming, *, purpose: str = "") -> str:
        """The name of our cookie: browsers send a host's cookies to every port of it.

        `__Host-` keeps other hosts of the same domain, and everything without TLS, from setting one.

        Args:
            request: the browser's.
            purpose: of a cookie that is not a login's, with a dash at its end.
        """
        host = request.host
        port = (host and host.port) or DEFAULT_PORTS[request.scheme]
        return f"{'__Host-' if request.scheme == 'https' else ''}orchestrator-{purpose}{port}"

    def set_cookie(self, request: Incoming) -> str:
        """The value of a Set-Cookie header that lets a browser in whose user has the token."""
        value = self._token_cookie(int(self.now()) + COOKIE_SECONDS, secrets.token_urlsafe(16))
        return self.cookie(request, value, COOKIE_SECONDS)

    def cookies(self, request: Incoming, *, purpose: str) -> list[str]:
        """The values of our cookies for that purpose: another port of our host may have set one, too."""
        return _cookies(request, self.cookie_name(request, purpose=purpose))

    def cookie(self, request: Incoming, value: str, seconds: int, *, purpose: str = "") -> str:
        """The value of a Set-Cookie header.

        Args:
            request: the browser's.
            value: of the cookie.
            seconds: how long the browser keeps it.
            purpose: as in `cookie_name`.
        """
        secure = "; Secure" if request.scheme == "https" else ""
        name = self.cookie_name(request, purpose=purpose)
        return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"

    def _token_cookie(self, good_until: int, nonce: str) -> str:
        key = hmac.digest((self.door.token or "").encode(), _PURPOSE, "sha256")
        mac = hmac.new(key, f"{good_until}.{nonce}".encode(), hashlib.sha256).hexdigest()
        return f"{good_until}.{nonce}.{mac}"

    def _is_good(self, value: str) -> bool:
        if self.door.token is None:
            return False
        until, _, rest = value.partition(".")
        nonce, _, _ = rest.partition(".")
        if not (until.isascii() and until.isdecimal() and len(until) < 16):
            return False
        return same_secret(value, self._token_cookie(int(until), nonce)) and self.now() < int(until)


def without_token(request: Incoming) -> str:
    """The address that was asked for, without its token and surely on this host."""
    rest = [(name, value) for name, value in request.parameters() if name != PARAMETER]
    return local_address(request.path, rest)


def local_address(path: str, query: Sequence[tuple[str, str]] = ()) -> str:
    """An address that leads nowhere but here: with two slashes or backslashes at its front it would name another host.

    Args:
        path: decoded, and from anybody.
        query: names and values, likewise.
    """
    local = "/" + quote(path.lstrip("/\\"), safe="/:@!$&'()*+,=~-._", errors="replace")
    return f"{local}?{urlencode(query, errors='replace')}" if query else local


def same_secret(one: str, other: str) -> bool:
    """Compare in constant time, whatever the lengths."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (one, other))
    return hmac.compare_digest(*digests)


def _cookies(request: Incoming, name: str) -> list[str]:
    """The values of all cookies of that name: another port of our host may have set one, too."""
    pairs = (pair.partition("=") for line in request.values("cookie") for pair in line.split(";"))
    return [value.strip().strip('"') for key, _, value in pairs if key.strip() == name]
