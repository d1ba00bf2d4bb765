"""Of several `serve` on one database, one runs Dagster's daemon: a row in PostgreSQL, or a lock in DAGSTER_HOME."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import tenacity

from orchestrator.errors import SettingsError
from orchestrator.storage.address import PostgresAddress, postgres_address

NAME = "daemon"
LOCK_FILE = "daemon.lock"
LOST = 75
"""Exit status of who has lost the lease: another try may succeed (EX_TEMPFAIL)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeasePolicy:
    """How long a holder that is not heard of keeps others waiting. All times in seconds, those of the database.

    Attributes:
        renew: between two renewals.
        trusted: a holder that has not renewed for so long looks at the row before each use of the database.
        expires: without a renewal for so long, another one may take it.
        poll: between two looks of who stands by.
    """

    renew: float = 5
    trusted: float = 10
    expires: float = 20
    poll: float = 2


LEASE = LeasePolicy()


def _now() -> float:
    """Seconds that go on while the machine sleeps, which those of `time.monotonic` do not on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease(Protocol):
    """The right to run the daemon."""

    def take(self) -> str | None:
        """Take it if it is free; who has it, in words, if it is not; None: it is ours."""

    def keep(self, on_loss: Callable[[], None]) -> None:
        """Stay its holder from now on.

        Args:
            on_loss: called when another one has it; must end this process's work at once.
        """

    def release(self) -> None:
        """Let others have it at once."""


class HomeLock:
    """A lock on a file: the kernel gives it back when its holder dies, however that happens."""

    def __init__(self, home: Path) -> None:
        self._path = home / LOCK_FILE
        self._file: IO[str] | None = None

    def take(self) -> str | None:
        """See `Lease`."""
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            return f"process {holder or 'of somebody'} runs Dagster's daemon in {self._path.parent}"
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return None

    def keep(self, on_loss: Callable[[], None]) -> None:
        """Nothing to do: nobody can take it."""

    def release(self) -> None:
        """See `Lease`."""
        if self._file:
            self._file.close()
            self._file = None


class PostgresLease:
    """A row that its holder renews; who finds it old takes it, and the number of the holder, the fence, grows.

    A holder that could not renew in time believes in nothing: before each use of the database it renews, or ends. So
    an outage of the database costs no holder its lease, and a holder that was cut off or asleep does nothing more.
    """

    def __init__(self, address: PostgresAddress, policy: LeasePolicy = LEASE) -> None:
        from orchestrator.storage.engine import shared_engine

        self._address = address
        self._policy = policy
        self._shared = shared_engine(address)
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._fence: int | None = None
        self._renewed = 0.0
        self._over = threading.Event()
        self._on_loss: Callable[[], None] = lambda: None

    def take(self) -> str | None:
        """See `Lease`."""
        import sqlalchemy as db
        from sqlalchemy import exc

        from orchestrator.storage.faults import said_in_words

        create = (
            "CREATE TABLE IF NOT EXISTS orchestrator_lease "
            "(name text PRIMARY KEY, holder text NOT NULL, fence bigint NOT NULL, renewed timestamptz NOT NULL)"
        )
        take = (
            "INSERT INTO orchestrator_lease AS lease VALUES (:name, :holder, 1, clock_timestamp()) "
            "ON CONFLICT (name) DO UPDATE SET holder = :holder, fence = lease.fence + 1, renewed = clock_timestamp() "
            "WHERE lease.renewed = '-infinity' OR lease.renewed < clock_timestamp() - make_interval(secs => :expires) "
            # A database that was away gives its holder as long to come back.
            "AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => :expires) RETURNING fence"
        )
        look = (
            "SELECT holder, extract(epoch FROM clock_timestamp() - renewed) FROM orchestrator_lease WHERE name = :name"
        )
        values = {"name": NAME, "holder": self._holder, "expires": self._policy.expires}
        began = _now()
        try:
            with self._shared.engine.connect() as connection:
                try:
                    connection.execute(db.text(create))
                except exc.IntegrityError:
                    return "another one makes the table at this moment"
                taken = connection.execute(db.text(take), values).scalar()
                if taken is None:
                    holder, age = connection.execute(db.text(look), {"name": NAME}).one()
                    return f"{holder} runs Dagster's daemon on {self._address} (heard of {float(age):.0f} s ago)"
        except exc.DBAPIError as error:
            return str(said_in_words(error, self._address))
        self._fence, self._renewed = int(taken), began
        return None

    def keep(self, on_loss: Callable[[], None]) -> None:
        """See `Lease`."""
        self._on_loss = on_loss
        self._shared.guard = self._look
        threading.Thread(target=self._renew_for_ever, name="lease", daemon=True).start()

    def release(self) -> None:
        """See `Lease`."""
        import sqlalchemy as db
        from sqlalchemy import exc

        self._over.set()
        self._shared.guard = None
        text = "UPDATE orchestrator_lease SET renewed = '-infinity' WHERE name = :name AND fence = :fence"
        try:
            with self._shared.engine.connect() as connection:
                connection.execute(db.text(text), {"name": NAME, "fence": self._fence})
        except exc.SQLAlchemyError:
            _log.warning("Kept the lease, because the database is away; it expires")

    def _renew_for_ever(self) -> None:
        from sqlalchemy import exc

        while not self._over.wait(self._policy.renew):
            try:
                with self._shared.engine.connect() as connection:
                    self._renew(lambda text, values: connection.exec_driver_sql(text, values).rowcount)
            except exc.SQLAlchemyError as error:
                _log.warning("Cannot renew the lease: %s", " ".join(str(getattr(error, "orig", error)).split()))

    def _look(self, driver: Any) -> None:
        """Before a connection is used: whether the lease is certainly ours."""

        def update(text: str, values: tuple[object, ...]) -> int:
            with driver.cursor() as cursor:
                cursor.execute(text, values)
                return int(cursor.rowcount)

        if _now() - self._renewed > self._policy.trusted:
            self._renew(update)
            if not driver.autocommit:
                driver.commit()

    def _renew(self, update: Callable[[str, tuple[object, ...]], int]) -> None:
        """Renew it, or act as one who has lost it."""
        began = _now()
        text = "UPDATE orchestrator_lease SET renewed = clock_timestamp() WHERE name = %s AND fence = %s"
        if update(text, (NAME, self._fence)) != 1:
            self._on_loss()
        self._renewed = began


def lease_of(home: Path) -> Lease:
    """The lease of the database that is set.

    Args:
        home: the DAGSTER_HOME.

    Raises:
        SettingsError: DAGSTER_POSTGRES_URL is no address.
    """
    address = postgres_address()
    return HomeLock(home) if address is None else PostgresLease(address)


def await_lease(lease: Lease, *, say: Callable[[str], None], policy: LeasePolicy = LEASE) -> None:
    """Stand by until the lease is ours.

    Args:
        lease: which.
        say: takes a line when it is not ours at once, and one when it is.
        policy: how often to look.
    """
    holder = lease.take()
    if holder is None:
        return
    say(f"Standing by: {holder}; this one takes over when that one ends")
    tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda answer: answer is not None), wait=tenacity.wait_fixed(policy.poll)
    )(lease.take)
    say("Taking over: the one that ran Dagster's daemon has ended")


def require_free(home: Path, purpose: str) -> None:
    """Check that nobody runs the daemon.

    Args:
        home: the DAGSTER_HOME.
        purpose: what must not happen meanwhile, such as "restore".

    Raises:
        SettingsError: somebody does.
    """
    lease = lease_of(home)
    if holder := lease.take():
        raise SettingsError(f"cannot {purpose} now: {holder}; stop every `serve` first")
    lease.release()
