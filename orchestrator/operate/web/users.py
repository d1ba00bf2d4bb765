"""People who log in by name and password; only hashes of their passwords are kept, made with argon2id."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import UI_USER, Role
from orchestrator.operate.web.private_list import NOTHING_ELSE, PrivateList

FILE = "users.json"
"""In DAGSTER_HOME, unless ORCHESTRATOR_USERS_FILE names another."""

SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 1024
NOT_UTF8 = "the password is not UTF-8; convert it (`iconv -t UTF-8`), or type it"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who may log in, as it is kept.

    Attributes:
        name: unique whatever the case of its letters.
        hash: of the password: argon2id, with its parameters and salt.
        created: ISO 8601, UTC.
        changed: when the password or the role was last set.
    """

    __pydantic_config__ = NOTHING_ELSE
    name: str
    role: Role
    hash: str = field(repr=False)
    created: str
    changed: str

    @property
    def version(self) -> str:
        """Another one after each change, so that sessions of before it end; also of who was removed and added anew."""
        parts = "\0".join((self.name, self.role, self.hash, self.created, self.changed))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]


class Users:
    """The users of one installation, in a 0600 file that is read anew when it has changed.

    Args:
        file: the file, which need not exist.
        hasher: makes and verifies the hashes.
    """

    def __init__(self, file: Path, *, hasher: PasswordHasher | None = None) -> None:
        self.file = file
        self._hasher = hasher or PasswordHasher()
        self._users: PrivateList[User] = PrivateList(
            file, User, what=f"users of {file}", remedy="delete it and add the users anew"
        )

    def add(self, name: str, role: Role, password: str) -> None:
        """Add a user.

        Raises:
            SettingsError: the name is none, or taken, or the password is too short or not UTF-8.
        """
        if not _NAME.fullmatch(name) or name.casefold() == UI_USER:
            raise SettingsError(
                f"{name!r} is no name for a user; take up to 64 letters, digits, dots, - + _ and @, and not {UI_USER}"
            )
        hashed, now = self._hashed(password), _now()
        with self._users.changing() as users:
            if _place(users, name) is not None:
                raise SettingsError(
                    f"there is a user named {name} already; `orchestrator user passwd {name}` changes the password"
                )
            users.append(User(name=name, role=role, hash=hashed, created=now, changed=now))

    def remove(self, name: str) -> None:
        """Remove a user, whose sessions end with it.

        Raises:
            SettingsError: there is none of that name.
        """
        with self._users.changing() as users:
            del users[self._require(users, name)]

    def change(self, name: str, *, password: str | None = None, role: Role | None = None) -> None:
        """Give a user another password or role, which ends his sessions.

        Raises:
            SettingsError: there is none of that name, or the password is too short or not UTF-8.
        """
        hashed = self._hashed(password) if password is not None else None
        with self._users.changing() as users:
            place = self._require(users, name)
            user = users[place]
            users[place] = replace(user, role=role or user.role, hash=hashed or user.hash, changed=_now())

    def all(self) -> Sequence[User]:
        """The users, in the order in which they were added.

        Raises:
            SettingsError: the file cannot be used.
        """
        return self._users.read()

    def is_empty(self) -> bool:
        """Whether nobody can log in by a password."""
        return not self._users.current()

    @property
    def fault(self) -> str | None:
        """Why the file cannot be used now, so that nobody can log in by a password; None: it can."""
        return self._users.fault

    def find(self, name: str) -> User | None:
        """The user of that name; None: there is none, or the file cannot be used."""
        users = self._users.current()
        place = _place(users, name)
        return None if place is None else users[place]

    def verified(self, name: str, password: str) -> User | None:
        """The user whose name and password these are; takes as long for a name that is nobody's."""
        user = self.find(name)
        # Surrogates are bytes that are not UTF-8, which no password of ours holds.
        text = password[: LONGEST_PASSWORD + 1].encode("utf-8", "replace")
        try:
            is_right = self._hasher.verify(user.hash if user else self._nobody, text)
        except (Argon2Error, InvalidHashError):
            return None
        return user if is_right and len(password) <= LONGEST_PASSWORD else None

    @cached_property
    def _nobody(self) -> str:
        """A hash of no password."""
        return self._hasher.hash(secrets.token_bytes(32))

    def _hashed(self, password: str) -> str:
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise SettingsError(
                f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters, and this one has {len(password)}"
            )
        try:
            return self._hasher.hash(password.encode())
        except UnicodeEncodeError as error:  # bytes that are not UTF-8; else any of them would be as good
            raise SettingsError(NOT_UTF8) from error

    def _require(self, users: Sequence[User], name: str) -> int:
        place = _place(users, name)
        if place is None:
            raise SettingsError(f"there is no user named {name}; `orchestrator user list` shows who there is")
        return place


def _place(users: Sequence[User], name: str) -> int | None:
    """Where the user of that name stands."""
    same = name.casefold()
    return next((place for place, user in enumerate(users) if user.name.casefold() == same), None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
