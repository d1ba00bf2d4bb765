"""Who sends a request, and what he may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do; each may do what the ones before it may.

    VIEWER reads. LAUNCHER launches, re-executes, cancels and backfills. ADMIN does everything.
    """

    VIEWER = "viewer"
    LAUNCHER = "launcher"
    ADMIN = "admin"


class LoginWay(StrEnum):
    """How somebody has logged in."""

    TOKEN = "token"  # noqa: S105 - the word, not one
    PASSWORD = "password"  # noqa: S105 - likewise
    OIDC = "oidc"
    PROXY = "proxy"
    OPEN = "open"
    """UI_LOGIN=off."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: of the user or of the machine token; `ui` for UI_TOKEN.
        role: what he may do.
        by_header: he sent a token in the Authorization header, which no browser adds by itself.
        way: how he has logged in.
        address: where he sends it from.
    """

    name: str
    role: Role
    by_header: bool = False
    way: LoginWay = field(default=LoginWay.TOKEN, compare=False)
    address: str = field(default="", compare=False)


UI_USER = "ui"
