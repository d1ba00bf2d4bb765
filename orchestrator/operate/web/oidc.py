"""The login at an OIDC provider: authorization code flow with PKCE, nonce and state, by authlib."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.base_client import BaseApp, OAuth2Mixin, OpenIDMixin
from authlib.integrations.requests_client import OAuth2Session
from joserfc.errors import JoseError

from orchestrator.operate.web.door import OidcProvider
from orchestrator.settings.people import EXACT, AllowList

START_GOOD_SECONDS = 600
PROVIDER_SECONDS = 15
LONGEST_CLAIM = 256
LONGEST_NAME = 64
MOST_USED_STATES = 10_000
DISCOVERED_GOOD_SECONDS = 300
"""Whoever is not logged in yet must not let us ask the provider by each request of theirs."""

BROKEN = (AuthlibBaseError, JoseError, requests.RequestException, ValueError, TypeError, KeyError, RuntimeError)
"""What authlib raises of a provider that cannot be reached or says what it should not."""

_log = logging.getLogger(__name__)


class OidcFailed(Exception):
    """Nobody is logged in; the message is for the person in front of the browser, and says nothing of the provider."""


@dataclass(frozen=True, kw_only=True)
class OidcStart:
    """Where to send the browser, and what it has to bring back.

    Attributes:
        url: of the provider.
        cookie: value of the cookie that binds the answer to this browser.
    """

    url: str
    cookie: str


@dataclass(frozen=True, kw_only=True)
class OidcPerson:
    """Whom the provider vouches for.

    Attributes:
        name: what to call this person.
        identities: by which the allow-list may name him: his address if it is verified, his name, his ID.
        target: the local address that was asked for.
    """

    name: str
    identities: tuple[str, ...]
    target: str


class _App(OAuth2Mixin, OpenIDMixin, BaseApp):  # type: ignore[misc] # authlib has no types
    """authlib's client, without a web framework."""

    client_cls = OAuth2Session


class OidcClient:
    """Sends browsers to the provider, and reads what they bring back.

    What belongs to one login (state, nonce, PKCE verifier) stands in a cookie under a MAC, so that memory is not
    filled by whoever begins logins; each state is good for once, and for minutes.

    Args:
        provider: where.
        now: seconds since 1970.
    """

    def __init__(self, provider: OidcProvider, *, now: Callable[[], float] = time.time) -> None:
        self._provider = provider
        self._now = now
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[str, float] = OrderedDict()
        self._using = threading.Lock()
        self._discovered: tuple[float, Any] | None = None

    async def start(self, *, redirect_uri: str, target: str) -> OidcStart:
        """Begin a login.

        Raises:
            OidcFailed: the provider is not there.
        """
        try:
            return await asyncio.to_thread(self._start, redirect_uri, target)
        except BROKEN as error:
            raise self._failed(error, "The login at the provider does not work at the moment; try again.") from error

    async def finish(self, *, cookie: str, parameters: Mapping[str, str]) -> OidcPerson:
        """End a login.

        Args:
            cookie: of `start`; empty: the browser has none.
            parameters: of the address that the provider has sent the browser to.

        Raises:
            OidcFailed: it is not this browser's, it was ended before, or the provider does not confirm it.
        """
        begun = self._begun(cookie)
        state = parameters.get("state", "")
        if begun is None or not hmac.compare_digest(state.encode(), str(begun["state"]).encode()):
            raise OidcFailed("This login was not begun in this browser, or too long ago; begin it anew.")
        if not self._use(state):
            raise OidcFailed("This login has been used already; begin it anew.")
        if "error" in parameters or "code" not in parameters:
            _log.warning("Refused a login: the provider says %r", parameters.get("error", "")[:LONGEST_CLAIM])
            raise OidcFailed("The provider has not logged you in.")
        try:
            claims = await asyncio.to_thread(self._claims, parameters["code"], begun)
            return _person(claims, allowed=self._provider.allowed, target=str(begun["target"]))
        except BROKEN as error:
            raise self._failed(error, "The provider has not confirmed the login; begin it anew.") from error

    def _start(self, redirect_uri: str, target: str) -> OidcStart:
        made = self._app().create_authorization_url(redirect_uri)
        begun = {name: made[name] for name in ("state", "nonce", "code_verifier")}
        until = self._now() + START_GOOD_SECONDS
        text = json.dumps({**begun, "redirect_uri": redirect_uri, "target": target, "until": until})
        body = base64.urlsafe_b64encode(text.encode()).decode()
        return OidcStart(url=made["url"], cookie=f"{body}.{self._mac(body)}")

    def _begun(self, cookie: str) -> Mapping[str, Any] | None:
        body, _, mac = cookie.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(body).encode()):
            return None
        begun: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(body))  # ours, as its MAC says
        return begun if self._now() < begun["until"] else None

    def _use(self, state: str) -> bool:
        with self._using:
            while self._used and (len(self._used) >= MOST_USED_STATES or next(iter(self._used.values())) < self._now()):
                self._used.popitem(last=False)
            if state in self._used:
                return False
            self._used[state] = self._now() + START_GOOD_SECONDS
            return True

    def _claims(self, code: str, begun: Mapping[str, Any]) -> Mapping[str, Any]:
        app = self._app()
        token = app.fetch_access_token(
            begun["redirect_uri"], code=code, code_verifier=begun["code_verifier"], grant_type="authorization_code"
        )
        issuer = str(app.server_metadata.get("issuer"))
        if issuer.rstrip("/") != self._provider.issuer:
            raise ValueError(f"it calls itself {issuer}")
        required = {
            "iss": {"essential": True, "value": issuer},
            "aud": {"essential": True, "value": self._provider.client_id},
        }
        claims: Mapping[str, Any] | None = app.parse_id_token(token, begun["nonce"], claims_options=required)
        if claims is None:
            raise ValueError("the provider's answer holds no ID token")
        return claims

    def _app(self) -> Any:
        """The client, which keeps what it has discovered; another one after minutes, because that changes."""
        with self._using:
            if self._discovered is None or self._discovered[0] < self._now():
                self._discovered = (self._now() + DISCOVERED_GOOD_SECONDS, self._new_app())
            return self._discovered[1]

    def _new_app(self) -> Any:
        return _App(
            None,
            name="orchestrator",
            client_id=self._provider.client_id,
            client_secret=self._provider.client_secret,
            server_metadata_url=f"{self._provider.issuer}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "default_timeout": PROVIDER_SECONDS,
            },
        )

    def _mac(self, body: str) -> str:
        return hmac.new(self._key, body.encode("utf-8", "replace"), "sha256").hexdigest()

    def _failed(self, error: Exception, sentence: str) -> OidcFailed:
        _log.error("Cannot log in at %s: %s: %s", self._provider.issuer, type(error).__name__, error)
        return OidcFailed(sentence)


def _person(claims: Mapping[str, Any], *, allowed: AllowList, target: str) -> OidcPerson:
    subject, name, address = (_claim(claims, key) for key in ("sub", "preferred_username", "email"))
    if not subject:
        raise ValueError("the ID token holds no sub")
    called = f"{EXACT}{subject}"
    identities = [called]
    # Many providers let people choose this name: with an @ in it, it would pass for an address.
    if name and "@" not in name and not name.lower().startswith(EXACT):
        identities.insert(0, name)
        # Two people may choose the same name, and that of a user of ours: alone, it would be no word on who it was.
        called = name if allowed.names(name) else f"{name[:LONGEST_NAME]} {called}"
    if address and "@" in address and claims.get("email_verified") is True:
        identities.insert(0, address)
        called = address
    return OidcPerson(name=called, identities=tuple(identities), target=target)


def _claim(claims: Mapping[str, Any], key: str) -> str:
    value = claims.get(key)
    usable = isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_CLAIM
    return value.strip() if usable and isinstance(value, str) else ""
