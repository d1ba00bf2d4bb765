"""What PostgreSQL and its driver say, in one sentence with what to do; and which of it passes by itself."""

from __future__ import annotations

import re

from sqlalchemy import exc

from orchestrator.errors import SettingsError
from orchestrator.storage.address import URL_SETTING, PostgresAddress

STATEMENT_TIMEOUT = "57014"

_WORDS: tuple[tuple[str, str], ...] = (
    (r"could not translate host name", "there is no such host: correct its name"),
    (
        r"password authentication failed|no password supplied|SASL authentication failed",
        "the user or the password is wrong: copy the address anew, and write / @ : ? # % of the password as %2F %40 "
        "%3A %3F %23 %25",
    ),
    (r'role ".*" does not exist|role ".*" is not permitted', "there is no such user: correct it, or create the role"),
    (r'database ".*" does not exist|no such database', "there is no such database: correct its name, or create it"),
    (r"no encryption|SSL off|SSL required|connection is insecure", "it wants TLS: add sslmode=require to the address"),
    (r"does not support SSL", "it has no TLS: take sslmode out of the address, if the network is yours"),
    (
        r"root certificate file .* does not exist",
        "sslmode verifies its certificate, and no root certificate is there: put your provider's in a file of this "
        "machine, and add sslrootcert=/its/path to the address (sslrootcert=system: those that this machine trusts)",
    ),
    (
        r"could not read root certificate",
        "sslrootcert is no file of certificates (PEM): fetch your provider's root certificate anew",
    ),
    (
        r"does not match host name",
        "its certificate is for another name: write the host as the certificate has it, or sslmode=verify-ca",
    ),
    (
        r"certificate verify failed|SSL error: .*signature",
        "its certificate is not signed by the authority in sslrootcert, or has expired: name the file of your "
        "provider's root certificate, sslrootcert=/its/path (sslrootcert=system: those that this machine trusts)",
    ),
    (r"no pg_hba.conf entry", "it lets this user in from here for no database: see its pg_hba.conf or firewall"),
    (r"invalid (connection|URI query) (option|parameter)", "libpq does not know an option of the address: take it out"),
    (r"permission denied", "the user may not make tables there: GRANT CREATE ON SCHEMA to it"),
)
"""What stays until somebody does something."""

_PASSING: tuple[tuple[str, str], ...] = (
    (r"too many (clients|connections)|remaining connection slots|no more connections", "it has no connection left"),
    (r"timeout expired|timed out", "it does not answer: look at its firewall, and whether it runs"),
    (
        r"refused|unreachable|No route|reset|closed the connection|terminating|starting up",
        "it is not there at this moment",
    ),
)


def said_in_words(error: BaseException, address: PostgresAddress) -> SettingsError:
    """The sentence for an error of the first connection."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    if re.search(r"unsupported startup parameter", text):
        return SettingsError(address.pooler_advice)
    advice = next((words for pattern, words in (*_WORDS, *_PASSING) if re.search(pattern, text, re.I)), None)
    return SettingsError(f"{URL_SETTING} ({address}) cannot be used: {advice or 'PostgreSQL refuses'} ({text})")


def passes(error: BaseException) -> bool:
    """Whether another try may succeed: the server is away, restarts, or has no room."""
    if isinstance(error, exc.TimeoutError):
        return True  # no connection is free in our own pool
    if isinstance(error, exc.InvalidRequestError) and "connection is closed" in str(error):
        return True  # the pool has found none that works
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if not isinstance(error, exc.OperationalError | exc.InterfaceError):
        return False
    if getattr(error.orig, "pgcode", None) == STATEMENT_TIMEOUT:
        return False
    text = str(error.orig)
    return not any(re.search(pattern, text, re.I) for pattern, _ in _WORDS) and "startup parameter" not in text
