"""What the door of the UI is to be like: read from the settings by `serve`, handed to the webserver's process."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.errors import SettingsError
from orchestrator.settings import SettingsSource, lookup
from orchestrator.settings.groups import UiSettings
from orchestrator.settings.hosts import HostPort, is_loopback

ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - recognised, not bound
SPACE_HOST = "SPACE_HOST"
"""Set by Hugging Face: the name under which a Space is reached."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who is let in, and where.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        named_hosts: names of UI_HOSTS, which a proxy with TLS may stand before.
        asks_for_token: False: the UI is open to whoever reaches a loopback address.
        token: opens the UI; None: no token does.
        token_is_given: it is UI_TOKEN, which is never printed; else it is made up for this start.
        frame_ancestors: pages that may show the UI in a frame, as Content-Security-Policy has them.
        certificate: PEM file; None: no TLS.
        key: its private key.
    """

    host: str
    port: int
    named_hosts: tuple[str, ...] = ()
    asks_for_token: bool = True
    token: str | None = field(default=None, repr=False)
    token_is_given: bool = False
    frame_ancestors: tuple[str, ...] = ()
    certificate: str | None = None
    key: str | None = None

    @classmethod
    def read(cls, *, host: str, port: int, certificate: Path | None = None, key: Path | None = None) -> Self:
        """Read the settings.

        Raises:
            SettingsError: one is wrong, or does not go with the address.
        """
        settings = SettingsSource().read(UiSettings)
        if (certificate is None) != (key is None):
            raise SettingsError("TLS needs both --cert and --key; give the other one, too")
        given = settings.token.get_secret_value() if settings.token else None
        if not is_loopback(host):
            _require_what_others_need(host, settings, has_tls=certificate is not None)
        if certificate is not None and key is not None:
            _require_usable(certificate, key)
        asks = settings.login == "token"
        return cls(
            host=host,
            port=port,
            named_hosts=(*settings.hosts, *_space_host()),
            asks_for_token=asks,
            token=given or (secrets.token_urlsafe(32) if asks else None),
            token_is_given=given is not None,
            frame_ancestors=settings.frame_ancestors,
            certificate=str(certificate.absolute()) if certificate else None,
            key=str(key.absolute()) if key else None,
        )

    @property
    def url(self) -> str:
        """The address of the UI."""
        return self._url(self.host)

    @property
    def local_url(self) -> str:
        """Where we reach it ourselves, also when it listens on every address."""
        return self._url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host))  # noqa: S104 - as above

    @property
    def url_to_open(self) -> str:
        """The address, with a token that was made up for this start; UI_TOKEN is not printed."""
        is_printed = self.asks_for_token and not self.token_is_given
        return f"{self.url}/?token={self.token}" if is_printed else self.url

    def to_json(self) -> str:
        """For the webserver's process; holds the token."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values: Mapping[str, object] = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})  # type: ignore[arg-type]

    def _url(self, host: str) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def _require_what_others_need(host: str, settings: UiSettings, *, has_tls: bool) -> None:
    """Refuse to listen where others reach us, unless there is a token and nobody can read it on its way."""
    if settings.login == "off":
        raise SettingsError(
            f"UI_LOGIN=off is for loopback addresses only, and others reach {host}; "
            "take it out and set UI_TOKEN, or listen on 127.0.0.1"
        )
    if settings.token is None:
        raise SettingsError(
            f"UI_TOKEN is not set, and others reach {host}; set it to a secret of 32 characters or more "
            "(`openssl rand -hex 32` makes one), or listen on 127.0.0.1"
        )
    if not has_tls and not settings.insecure:
        raise SettingsError(
            f"whoever reads the network on the way to {host} would read UI_TOKEN, because there is no TLS; give --cert "
            "and --key, or set UI_INSECURE=true where nobody does, such as in a container published on loopback"
        )


def _require_usable(certificate: Path, key: Path) -> None:
    try:
        # Without a function for the password, an encrypted key would be asked for on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"cannot use the certificate {certificate} with the key {key}: {reason}; both are PEM files, "
            "the key without a passphrase"
        ) from error


def _space_host() -> tuple[str, ...]:
    text = lookup(SPACE_HOST)
    if not text:
        return ()
    host = HostPort.parse(text)
    if host is None or host.port is not None:
        raise SettingsError(f"{SPACE_HOST}={text!r} is wrong: it is not a host name; take it out or correct it")
    return (host.name,)
