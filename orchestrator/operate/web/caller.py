"""Who sends a request, and what he may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody may do; each may do what the ones before it may.

    VIEWER reads. LAUNCHER launches, re-executes, cancels and backfills. ADMIN does everything.
    """

    VIEWER = "viewer"
    LAUNCHER = "launcher"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        name: of a machine token; else `ui`.
        role: what he may do.
        by_header: he sent a token in the Authorization header, which no browser adds by itself.
    """

    name: str
    role: Role
    by_header: bool = False


UI_USER = "ui"
