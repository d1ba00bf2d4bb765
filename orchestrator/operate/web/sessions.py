"""Sessions of people who have logged in: kept by us, so that a log-out ends them; the browser has a random ID."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.operate.web.caller import LoginWay
from orchestrator.operate.web.private_list import NOTHING_ELSE, PrivateList

FILE = "sessions.json"
SESSION_SECONDS = 12 * 3600
RENEWED_AFTER_SECONDS = 600
"""A session is renewed by use, but not written to the disk by each request."""

MOST_SESSIONS_EACH = 20
"""Of one person; the one that was unused for longest gives way."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoginSession:
    """Somebody's login in one browser.

    Attributes:
        sha256: of its ID, which is the cookie.
        identities: what he is allowed by: his name, or what the OIDC provider vouches for.
        version: of the user; the session ends when the user has another one.
        good_until: seconds since 1970.
    """

    __pydantic_config__ = NOTHING_ELSE
    sha256: str
    name: str
    way: LoginWay
    identities: tuple[str, ...]
    version: str
    good_until: float


class Sessions:
    """The sessions of one installation, in a 0600 file, so that they outlive a restart.

    Args:
        home: the DAGSTER_HOME.
        now: seconds since 1970.
    """

    def __init__(self, home: Path, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._sessions: PrivateList[LoginSession] = PrivateList(
            home / FILE, LoginSession, what="sessions", remedy="delete it, and everybody logs in anew"
        )

    def begin(self, *, name: str, way: LoginWay, identities: tuple[str, ...], version: str) -> str:
        """Begin a session, and return its ID for the cookie.

        Raises:
            SettingsError: the file cannot be written.
        """
        session_id = secrets.token_urlsafe(32)
        session = LoginSession(
            sha256=_hash(session_id),
            name=_writable(name),
            way=way,
            identities=tuple(map(_writable, identities)),
            version=version,
            good_until=self._now() + SESSION_SECONDS,
        )
        with self._sessions.changing() as sessions:
            good = [known for known in sessions if known.good_until > self._now()]
            own = [known for known in good if (known.name, known.way) == (name, way)]
            own.sort(key=lambda known: known.good_until)
            surplus = own[: max(0, len(own) + 1 - MOST_SESSIONS_EACH)]
            sessions[:] = [*(known for known in good if known not in surplus), session]
        return session_id

    def find(self, session_id: str) -> LoginSession | None:
        """The session of this ID; None: there is none, or it is over."""
        digest = _hash(session_id)
        # A look-up by hash: what a clock says of it is no help to whoever does not know the ID.
        found = next((session for session in self._sessions.current() if session.sha256 == digest), None)
        return found if found and self._now() < found.good_until else None

    def renewed(self, session: LoginSession) -> bool:
        """Whether the session is now good for longer, so that the cookie has to be set again."""
        good_until = self._now() + SESSION_SECONDS
        if good_until - session.good_until < RENEWED_AFTER_SECONDS:
            return False
        try:
            with self._sessions.changing() as sessions:
                sessions[:] = [
                    replace(known, good_until=good_until) if known.sha256 == session.sha256 else known
                    for known in sessions
                ]
        except SettingsError as error:
            _log.error("Sessions cannot be renewed: %s", error)
            return False
        return True

    def end(self, session_id: str) -> None:
        """End a session, if there is one of this ID.

        Raises:
            SettingsError: the file cannot be written.
        """
        digest = _hash(session_id)
        with self._sessions.changing() as sessions:
            sessions[:] = [session for session in sessions if session.sha256 != digest]


def _hash(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).hexdigest()


def _writable(text: str) -> str:
    """Without halves of characters, which a provider's JSON may hold and a file may not."""
    return text.encode("utf-8", "replace").decode()
