"""What the door of the UI is to be like: read from the settings by `serve`, handed to the webserver's process."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from orchestrator.errors import SettingsError
from orchestrator.operate.home import dagster_home
from orchestrator.operate.web.users import FILE, Users
from orchestrator.settings import SettingsSource, lookup
from orchestrator.settings.groups import UiSettings
from orchestrator.settings.hosts import HostPort, is_loopback
from orchestrator.settings.people import AllowList, TrustedProxy, issuer_fault

ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - recognised, not bound
SPACE_HOST = "SPACE_HOST"
"""Set by Hugging Face: the name under which a Space is reached."""


HUGGING_FACE = ("OPENID_PROVIDER_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET")
"""Set by Hugging Face in a Space with `hf_oauth: true`."""

NOBODY = AllowList()


@dataclass(frozen=True, kw_only=True)
class OidcProvider:
    """Where people log in, and who of them is let in.

    Attributes:
        issuer: its address.
        client_id: ours there.
        client_secret: likewise.
        allowed: who may come in.
    """

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    allowed: AllowList


@dataclass(frozen=True, kw_only=True)
class Door:
    """Who is let in, and where.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        named_hosts: names of UI_HOSTS, which a proxy with TLS may stand before.
        asks_for_token: False: the UI is open to whoever reaches a loopback address.
        token: opens the UI; None: no token does.
        users_file: of those who log in by a password.
        oidc: where else people log in.
        proxy: which proxy is believed.
        proxy_allowed: who may come in through it.
        token_is_given: it is UI_TOKEN, which is never printed; else it is made up for this start.
        metrics_token: opens /metrics, and nothing else; None: another login does.
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
    metrics_token: str | None = field(default=None, repr=False)
    users_file: str = ""
    oidc: OidcProvider | None = None
    proxy: TrustedProxy | None = None
    proxy_allowed: AllowList = NOBODY
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
        users_file = (settings.users_file or dagster_home() / FILE).expanduser().absolute()
        oidc, proxy = _oidc(settings), _proxy(settings)
        knows_people = bool(Users(users_file).all() or oidc or (proxy and proxy.header))
        if not is_loopback(host):
            has_login = knows_people or given is not None
            _require_what_others_need(host, settings, has_login=has_login, has_tls=certificate is not None)
        if certificate is not None and key is not None:
            _require_usable(certificate, key)
        asks = settings.login == "token"
        return cls(
            host=host,
            port=port,
            named_hosts=(*settings.hosts, *_space_host()),
            asks_for_token=asks,
            token=given or (secrets.token_urlsafe(32) if asks and not knows_people else None),
            token_is_given=given is not None,
            metrics_token=settings.metrics_token.get_secret_value() if settings.metrics_token else None,
            users_file=str(users_file),
            oidc=oidc,
            proxy=proxy,
            proxy_allowed=AllowList.parse(settings.trusted_proxy_allowed),
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
        is_printed = self.token is not None and not self.token_is_given
        return f"{self.url}/?token={self.token}" if is_printed else self.url

    def to_json(self) -> str:
        """For the webserver's process; holds the secrets."""
        return TypeAdapter(type(self)).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return TypeAdapter(cls).validate_json(text)

    def _url(self, host: str) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def _require_what_others_need(host: str, settings: UiSettings, *, has_login: bool, has_tls: bool) -> None:
    """Refuse to listen where others reach us, unless there is a login and nobody can read it on its way."""
    if settings.login == "off":
        raise SettingsError(
            f"UI_LOGIN=off is for loopback addresses only, and others reach {host}; "
            "take it out and set UI_TOKEN, or listen on 127.0.0.1"
        )
    if not has_login:
        raise SettingsError(
            f"UI_TOKEN is not set, nobody can log in otherwise, and others reach {host}; add users (`orchestrator user "
            "add NAME --role admin`), or set OIDC_ISSUER, TRUSTED_PROXY, or UI_TOKEN to a secret of 32 "
            "characters or more (`openssl rand -hex 32` makes one), or listen on 127.0.0.1"
        )
    if not has_tls and not settings.insecure:
        raise SettingsError(
            f"whoever reads the network on the way to {host} would read passwords and tokens, because there is no TLS; "
            "give --cert and --key, or set UI_INSECURE=true where nobody does, such as in a container published on "
            "loopback"
        )


def _oidc(settings: UiSettings) -> OidcProvider | None:
    """The OIDC provider of our own settings, else of Hugging Face's; None: there is none."""
    secret = settings.oidc_client_secret.get_secret_value() if settings.oidc_client_secret else None
    values: dict[str, str | None] = {
        "OIDC_ISSUER": settings.oidc_issuer,
        "OIDC_CLIENT_ID": settings.oidc_client_id,
        "OIDC_CLIENT_SECRET": secret,
    }
    if settings.oidc_issuer is None:
        values = {name: lookup(name) for name in HUGGING_FACE}
        if not all(values.values()):  # a Space's own variables, which nobody may have asked for
            if secret or settings.oidc_client_id or settings.oidc_allowed:
                raise SettingsError("OIDC_ISSUER is not set, and other OIDC_… settings are; set it, or take them out")
            return None
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise SettingsError(f"{missing[0]} is not set, and OIDC_ISSUER is; set it to what the provider gave you for us")
    issuer, client_id, client_secret = (str(value) for value in values.values())
    if fault := issuer_fault(issuer):
        raise SettingsError(f"{next(iter(values))} is wrong: {fault}; correct it")
    if not settings.oidc_allowed:
        raise SettingsError(
            f"OIDC_ALLOWED is not set, and everybody whom {issuer} knows could log in; name who may, such as "
            "alice@example.com=admin,*@example.com=viewer"
        )
    return OidcProvider(
        issuer=issuer.rstrip("/"),
        client_id=client_id,
        client_secret=client_secret,
        allowed=AllowList.parse(settings.oidc_allowed),
    )


def _proxy(settings: UiSettings) -> TrustedProxy | None:
    if settings.trusted_proxy is None:
        return None
    proxy = TrustedProxy.parse(settings.trusted_proxy)
    if proxy.header and not settings.trusted_proxy_allowed:
        raise SettingsError(
            f"TRUSTED_PROXY_ALLOWED is not set, and everybody whom the proxy lets through with {proxy.header} "
            "could come in; name who may, such as alice=admin,*@example.com=viewer"
        )
    return proxy


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
