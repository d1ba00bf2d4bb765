"""The private package index as people paste it: with the login in the address, as a line of pip's configuration."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

_LINE = re.compile(r"(?i)(?:(?:-i|--(?:extra-)?index-url|--default-index|(?:extra-)?index-url)[\s=]+|[A-Z_]+=)?(\S+)")
"""As in `--index-url ADDRESS`, `index-url = ADDRESS` and `PIP_INDEX_URL=ADDRESS`."""

_IN_NETRC = re.compile(r"[!-\[\]-~]+")
"""What every reader of a netrc file takes as it is: older ones of Python know neither quotes nor backslashes."""


def as_pasted(*, url: str | None = None, user: str | None = None, password: str | None = None) -> dict[str, Any]:
    """The address without its login, and the login; the texts of faults show none of it.

    Args:
        url: PRIVATE_INDEX_URL.
        user: PRIVATE_INDEX_USER.
        password: PRIVATE_INDEX_PASSWORD.

    Raises:
        ValueError: they do not fit together, or no netrc file can hold them.
    """
    if not url:
        if user or password:
            raise ValueError(
                "PRIVATE_INDEX_USER or PRIVATE_INDEX_PASSWORD is set, but PRIVATE_INDEX_URL is not; set it"
            )
        return {}
    url, pasted_user, pasted_password = _split(url)
    password = password.rstrip("\r\n") if password else None  # a file ends with them
    for pasted, given in ((pasted_user, user), (pasted_password, password)):
        if pasted and given and pasted != given:
            raise ValueError(
                "PRIVATE_INDEX_URL holds another login than PRIVATE_INDEX_USER and PRIVATE_INDEX_PASSWORD: take it out"
            )
    user, password = user or pasted_user, password or pasted_password
    if bool(user) != bool(password):
        lacking, has = ("PASSWORD", "USER") if user else ("USER", "PASSWORD")
        raise ValueError(
            f"PRIVATE_INDEX_{has} is set, and PRIVATE_INDEX_{lacking} is not: set both, or neither for an index "
            "without a login (the user of a token is what the index says, often __token__)"
        )
    for name, text in (("PRIVATE_INDEX_USER", user), ("PRIVATE_INDEX_PASSWORD", password)):
        if text and (not _IN_NETRC.fullmatch(text) or text.startswith('"')):
            raise ValueError(
                f"{name} cannot stand in a netrc file, from which pip and uv read it: it holds a blank, a backslash or "
                "a character beyond ASCII, or begins with a double quote; make a token at the index, and use that"
            )
    return {"url": url, "user": user, "password": password}


def _split(text: str) -> tuple[str, str | None, str | None]:
    found = _LINE.fullmatch(text.strip().strip("'\""))
    address = found[1].strip("'\"") if found else ""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(
            "PRIVATE_INDEX_URL is no address of a package index: write it as in "
            "https://nexus.example.com/repository/pypi/simple (its value is not shown, it may hold a password)"
        )
    if ":" in host:
        raise ValueError("PRIVATE_INDEX_URL names its host by an IPv6 address, which no netrc file can: give it a name")
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    return urlunsplit((parts.scheme, place, parts.path, "", "")), unquote(user) or None, unquote(password) or None
