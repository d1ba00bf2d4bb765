"""Tokens for machines: random, named, each with a role; only their hashes are kept."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import Role

FILE = "tokens.json"
"""In DAGSTER_HOME: what holds for one installation, and outlives a restart, stands there already."""

PREFIX = "orch_"
"""By which scanners of committed secrets, and people, recognise one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MachineToken:
    """A token, as it is kept.

    Attributes:
        sha256: of the token; 256 random bits need no salt and no slow hash.
        created: ISO 8601, UTC.
    """

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
        self._file = home / FILE
        self._seen: tuple[int, ...] | None = None  # of no file: there are no tokens
        self._tokens: Sequence[MachineToken] = ()

    def add(self, name: str, role: Role) -> str:
        """Make a token, and return it; it cannot be shown again.

        Raises:
            SettingsError: the name is none, or taken.
        """
        if not _NAME.fullmatch(name):
            raise SettingsError(f"{name!r} is no name for a token; take up to 64 letters, digits, dots, - and _")
        token = PREFIX + secrets.token_urlsafe(32)
        with self._changing() as tokens:
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
        with self._changing() as tokens:
            remaining = [token for token in tokens if token.name != name]
            if len(remaining) == len(tokens):
                raise SettingsError(f"there is no token named {name}; `orchestrator token list` shows what there is")
            tokens[:] = remaining

    def all(self) -> Sequence[MachineToken]:
        """The tokens, in the order in which they were added.

        Raises:
            SettingsError: the file cannot be used.
        """
        return self._read()

    def find(self, token: str) -> MachineToken | None:
        """The entry of this token; None: it is unknown, or the file cannot be used."""
        digest = _hash(token)
        found = None
        for known in self._current():
            # Each is compared, and in constant time, so that no clock says how much of a guess was right.
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def _current(self) -> Sequence[MachineToken]:
        try:
            status = self._file.stat()
            seen: tuple[int, ...] | None = (status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode)
        except OSError:
            seen = None
        if seen != self._seen:
            try:
                self._tokens = self._read()
            except SettingsError as error:
                _log.error("Machine tokens do not work: %s", error)
                self._tokens = ()
            self._seen = seen
        return self._tokens

    def _read(self) -> list[MachineToken]:
        try:
            with self._file.open(encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise SettingsError(f"others may change {self._file}; look into it, then run chmod 600 on it")
                entries = json.load(file)
            return [MachineToken(**{**entry, "role": Role(entry["role"])}) for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(f"cannot read {self._file}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{self._file} is not as `orchestrator token add` writes it; delete it and add the tokens anew"
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[list[MachineToken]]:
        home = self._file.parent
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(home / f"{FILE}.lock"):
                tokens = self._read()
                yield tokens
                self._write(tokens)
        except OSError as error:
            raise SettingsError(f"cannot write {self._file}: {error.strerror}") from error

    def _write(self, tokens: Sequence[MachineToken]) -> None:
        entries = [{**vars(token), "role": token.role.value} for token in tokens]
        with tempfile.NamedTemporaryFile("w", dir=self._file.parent, prefix=f"{FILE}.", delete=False) as file:
            try:
                json.dump(entries, file, indent=2)  # mkstemp has made it 0600
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._file)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
