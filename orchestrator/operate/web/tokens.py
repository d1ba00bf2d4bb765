"""Tokens for machines: random, named, each with a role; only their hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.private_list import NOTHING_ELSE, PrivateList

FILE = "tokens.json"
"""In DAGSTER_HOME: what holds for one installation, and outlives a restart, stands there already."""

PREFIX = "orch_"
"""By which scanners of committed secrets, and people, recognise one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class MachineToken:
    """A token, as it is kept.

    Attributes:
        sha256: of the token; 256 random bits need no salt and no slow hash.
        created: ISO 8601, UTC.
    """

    __pydantic_config__ = NOTHING_ELSE
    name: str
    role: Role
    sha256: str
    created: str


class MachineTokens:
    """The tokens of one installation, in a 0600 file that is read anew when it has changed.

    Args:
        home: the DAGSTER_HOME, which need not exist.
    """

    def __init__(self, home: Path) -> None:
        self._tokens: PrivateList[MachineToken] = PrivateList(
            home / FILE, MachineToken, what="machine tokens", remedy="delete it and add the tokens anew"
        )

    def add(self, name: str, role: Role) -> str:
        """Make a token, and return it; it cannot be shown again.

        Raises:
            SettingsError: the name is none, or taken.
        """
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no name for a token; take up to 64 letters, digits, dots, - and _")
        token = PREFIX + secrets.token_urlsafe(32)
        with self._tokens.changing() as tokens:
            if any(known.name == name for known in tokens):
                raise SettingsError(f"there is a token named {name} already; remove it first, or take another name")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            tokens.append(MachineToken(name=name, role=role, sha256=_hash(token), created=created))
        return token

    def remove(self, name: str) -> None:
        """Remove a token, which opens nothing from now on.

        Raises:
            SettingsError: there is none of that name.
        """
        with self._tokens.changing() as tokens:
            remaining = [token for token in tokens if token.name != name]
            if len(remaining) == len(tokens):
                raise SettingsError(f"there is no token named {name}; `orchestrator token list` shows what there is")
            tokens[:] = remaining

    def all(self) -> Sequence[MachineToken]:
        """The tokens, in the order in which they were added.

        Raises:
            SettingsError: the file cannot be used.
        """
        return self._tokens.read()

    def find(self, token: str) -> MachineToken | None:
        """The entry of this token; None: it is unknown, or the file cannot be used."""
        digest = _hash(token)
        found = None
        for known in self._tokens.current():
            # Each is compared, and in constant time, so that no clock says how much of a guess was right.
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
