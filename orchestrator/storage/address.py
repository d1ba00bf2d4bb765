"""DAGSTER_POSTGRES_URL as people paste it, taken apart."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import StorageSettings
from orchestrator.settings.source import SettingsSource

URL_SETTING = "DAGSTER_POSTGRES_URL"

SCHEMES = ("postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg")

# The strict reading first: whoever has encoded the password may use @ in what follows.
_PLACE = re.compile(r"(\[[^\]]*\]|[\w.%-]*)(?::(\d*))?", re.ASCII)
_ONE = r"(?:\[[^\]]*\]|[\w.%-]*)(?::\d*)?"
_HOST = rf"(?P<places>{_ONE}(?:,{_ONE})*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?"
_ENCODED = re.compile(rf"(?:(?P<user>[^:@/?]*)(?::(?P<password>[^@/?]*))?@)?{_HOST}", re.ASCII)
_AS_IS = re.compile(rf"(?P<user>[^:]*):(?P<password>.*)@{_HOST}", re.ASCII)

DEFAULTS = {
    "connect_timeout": "10",
    "application_name": "orchestrator",
    # A network that has swallowed our packets is noticed, and not only by the next statement.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""What libpq is told unless the address says otherwise: https://www.postgresql.org/docs/current/libpq-connect.html."""


SYSTEM = "system"
ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Amazon
    "/etc/ssl/cert.pem",  # macOS
)
"""Where systems keep the certificates that they trust."""


@dataclass(frozen=True, kw_only=True)
class PostgresAddress:
    """A database, and how to get in.

    Attributes:
        host: empty: the address's `host` option, or a local socket.
        port: as written; empty: 5432.
        options: what follows the question mark, such as `sslmode`; libpq's own names.
    """

    host: str
    port: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as Neon, RDS or Heroku show it: any scheme, a password that is encoded or is not.

        Raises:
            SettingsError: it is none, or its host cannot take its options.
        """
        pasted = text.strip().removeprefix("psql ").strip().strip("'\"")
        scheme, separator, rest = pasted.partition("://")
        if not separator or scheme.lower() not in SCHEMES:
            raise SettingsError(
                f"{URL_SETTING} is no address of a PostgreSQL: it looks like "
                "postgresql://user:password@host:5432/database?sslmode=require"
            )
        match = _ENCODED.fullmatch(rest)
        if match is None or "@" in (match["database"] or "") or "@" in (match["query"] or "").partition("=")[0]:
            match = _AS_IS.fullmatch(rest) or match  # else a part of the password would be shown as the database
        if match is None:
            raise SettingsError(
                f"{URL_SETTING} cannot be read: after {scheme}:// comes user:password@host:port/database?option=value; "
                "write / @ : ? and # of the password as %2F %40 %3A %3F and %23"
            )
        parts = {name: unquote(value or "") for name, value in match.groupdict().items() if name != "query"}
        places = [found.groups("") for each in match["places"].split(",") if (found := _PLACE.fullmatch(each))]
        pairs = (pair.partition("=") for pair in (match["query"] or "").split("&") if pair)
        options = {unquote(name): unquote(value) for name, _, value in pairs}
        address = cls(
            host=",".join(unquote(host).strip("[]") for host, _ in places),
            port=",".join(port for _, port in places).strip(",") and ",".join(port for _, port in places),
            user=parts["user"],
            password=parts["password"],
            database=parts["database"],
            options=options,
        )
        if address.is_pooler and "options" in options:
            raise SettingsError(address.pooler_advice)
        return address

    def __str__(self) -> str:
        """Where it leads, without the password."""
        host = self.host or self.options.get("host", "the local socket")
        return f"{host}:{self.port or 5432}/{self.database or self.user}"

    @property
    def is_pooler(self) -> bool:
        """Whether it is one of Neon's pooled hosts, which are PgBouncers in transaction mode."""
        return self.host.partition(".")[0].endswith("-pooler")

    @property
    def schema(self) -> str | None:
        """The first schema of the address's `search_path`; None: the role's own."""
        found = re.search(r"search_path\s*=\s*\"?([^\s,\"]+)", self.options.get("options", ""))
        return found[1] if found else None

    @property
    def pooler_advice(self) -> str:
        """What to do instead of `options`, which a pooler does not take."""
        return (
            f"{URL_SETTING} leads to a pooler ({self.host}), which takes no `options`: take `options=…` out of the "
            f"address and set it once for the role: ALTER ROLE {self.user or 'the_role'} IN DATABASE "
            f"{self.database or 'the_database'} SET search_path = {self.schema or 'the_schema'}; "
            "or take the host without -pooler"
        )

    def arguments(self) -> dict[str, str]:
        """What `psycopg2.connect` takes, by libpq's names."""
        own = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
        }
        return {**DEFAULTS, **{name: value for name, value in own.items() if value}, **self.options, **self._roots()}

    def _roots(self) -> dict[str, str]:
        """What stands for `sslrootcert=system`: psycopg2's wheel looks for the system's roots where none are."""
        if self.options.get("sslrootcert") != SYSTEM:
            return {}
        found = next(
            (file for file in (ssl.get_default_verify_paths().cafile, *ROOTS) if file and Path(file).exists()), None
        )
        return {"sslmode": "verify-full", "sslrootcert": found or SYSTEM}

    def service(self) -> str:
        """A service file that holds all of it: programs take its place from PGSERVICEFILE, and no argument is seen."""
        lines = [f"{name}={value}" for name, value in self.arguments().items()]
        return "\n".join(["[orchestrator]", *lines, ""])


def postgres_address() -> PostgresAddress | None:
    """The database that is set; None: SQLite.

    Raises:
        SettingsError: the setting is no address.
    """
    url = SettingsSource().read(StorageSettings).postgres_url
    return PostgresAddress.parse(url.get_secret_value()) if url else None
