"""Who may come in: the token in the address, as Jupyter does it, then a cookie; programs send the token in a header."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from orchestrator.operate.web.caller import UI_USER, Caller, Role
from orchestrator.operate.web.door import Door
from orchestrator.operate.web.incoming import Incoming
from orchestrator.operate.web.tokens import MachineTokens
from orchestrator.settings.hosts import DEFAULT_PORTS

COOKIE_SECONDS = 7 * 24 * 3600
PARAMETER = "token"
_PURPOSE = b"orchestrator: cookie of the UI, 1"


@dataclass(frozen=True)
class Login:
    """Knows who sends a request.

    The cookie is not the token: it holds until when it is good, under a MAC whose key comes of the token. So it
    outlives a restart with the same UI_TOKEN, and a new token ends it.

    Args:
        door: holds the token.
        machines: the tokens of `orchestrator token add`.
        now: seconds since 1970.
    """

    door: Door
    machines: MachineTokens
    now: Callable[[], float] = time.time

    @property
    def is_off(self) -> bool:
        """Whether no token is asked for."""
        return not self.door.asks_for_token

    def opens(self, token: str) -> bool:
        """Whether this is the token of the UI."""
        return self.door.token is not None and _same(token, self.door.token)

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
        if self.is_off or any(self._is_good(value) for value in _cookies(request, self.cookie_name(request))):
            return Caller(UI_USER, Role.ADMIN)
        return None

    def cookie_name(self, request: Incoming) -> str:
        """The name of our cookie: browsers send a host's cookies to every port of it.

        `__Host-` keeps other hosts of the same domain, and everything without TLS, from setting one.
        """
        host = request.host
        port = (host and host.port) or DEFAULT_PORTS[request.scheme]
        return f"{'__Host-' if request.scheme == 'https' else ''}orchestrator-{port}"

    def set_cookie(self, request: Incoming) -> str:
        """The value of a Set-Cookie header that lets its browser in."""
        secure = "; Secure" if request.scheme == "https" else ""
        value = self._cookie(int(self.now()) + COOKIE_SECONDS, secrets.token_urlsafe(16))
        name = self.cookie_name(request)
        return f"{name}={value}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Lax{secure}"

    def _cookie(self, good_until: int, nonce: str) -> str:
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
        return _same(value, self._cookie(int(until), nonce)) and self.now() < int(until)


class Attempts:
    """Slows down who tries tokens. Nobody is locked out: the right token is never delayed.

    Args:
        now: a monotonic clock.
        sleep: waits.
    """

    FIRST_SECONDS = 0.25
    LONGEST_SECONDS = 5.0
    FORGOTTEN_AFTER_SECONDS = 300.0
    MOST_WAITING = 50

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._failures = 0
        self._last = 0.0
        self._waiting = 0

    async def failed(self) -> bool:
        """Wait after a wrong token, longer with each; False, at once: too many wait already."""
        if self._waiting >= self.MOST_WAITING:
            return False
        if self._now() - self._last > self.FORGOTTEN_AFTER_SECONDS:
            self._failures = 0
        self._last = self._now()
        seconds = min(self.FIRST_SECONDS * 2 ** min(self._failures, 10), self.LONGEST_SECONDS)
        self._failures += 1
        self._waiting += 1
        try:
            await self._sleep(seconds)
        finally:
            self._waiting -= 1
        return True


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


def _same(one: str, other: str) -> bool:
    """Compare in constant time, whatever the lengths."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (one, other))
    return hmac.compare_digest(*digests)


def _cookies(request: Incoming, name: str) -> list[str]:
    """The values of all cookies of that name: another port of our host may have set one, too."""
    pairs = (pair.partition("=") for line in request.values("cookie") for pair in line.split(";"))
    return [value.strip().strip('"') for key, _, value in pairs if key.strip() == name]
