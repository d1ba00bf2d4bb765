"""One engine with one pooled connection per process and database, whichever of Dagster's storages asks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as db
from sqlalchemy import event, exc

from orchestrator.errors import SettingsError
from orchestrator.storage.address import URL_SETTING, PostgresAddress

POOL_SIZE = 1
POOL_OVERFLOW = 20
RECYCLE_SECONDS = 300
"""Neon and most firewalls close a connection that was idle for five minutes."""

IDLE_SECONDS = 10.0
"""A connection that was used a moment ago is believed; a look at it would cost a round trip per event."""


@dataclass
class SharedEngine:
    """An engine, and what holds for this whole process.

    Attributes:
        statement_timeout_ms: of new connections; None: the server's.
        guard: looks at each connection of the driver's before it is used; may end this process.
    """

    engine: db.Engine
    statement_timeout_ms: int | None = None
    guard: Callable[[Any], None] | None = None
    is_ready: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def limit_statements(self, milliseconds: int) -> None:
        """Let no statement of this process take longer; for the webserver, whose pages must not hang."""
        self.statement_timeout_ms = milliseconds
        self.engine.dispose()


_engines: dict[tuple[tuple[str, str], ...], SharedEngine] = {}
_lock = threading.Lock()


def shared_engine(address: PostgresAddress) -> SharedEngine:
    """The engine of this process for a database; makes no connection yet."""
    key = tuple(sorted(address.arguments().items()))
    with _lock:
        if key not in _engines:
            _engines[key] = _new(address)
        return _engines[key]


def _new(address: PostgresAddress) -> SharedEngine:
    try:
        import psycopg2  # noqa: F401 - the driver, which is not there for everybody
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{URL_SETTING} needs packages that are not installed ({error.name}): pip install 'orchestrator[postgres]'"
        ) from error
    engine = db.create_engine(
        "postgresql+psycopg2://",
        connect_args=address.arguments(),
        isolation_level="AUTOCOMMIT",
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_recycle=RECYCLE_SECONDS,
        use_native_hstore=False,  # Dagster has none, and psycopg2 would ask for its OID at each connection
    )
    shared = SharedEngine(engine)

    @event.listens_for(engine, "connect")
    def set_timeout(connection: Any, _record: Any) -> None:
        # Behind a pooler in transaction mode it would hold for whoever gets the connection next.
        if shared.statement_timeout_ms is not None and not address.is_pooler:
            with connection, connection.cursor() as cursor:
                cursor.execute(f"SET statement_timeout = {int(shared.statement_timeout_ms)}")

    @event.listens_for(engine, "checkin")
    def remember(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def look(connection: Any, record: Any, _proxy: Any) -> None:
        if connection.closed:
            raise exc.DisconnectionError
        if time.monotonic() - record.info.get("used", time.monotonic()) > IDLE_SECONDS and not _answers(connection):
            raise exc.DisconnectionError  # the pool then makes a new one
        if shared.guard:
            try:
                shared.guard(connection)
            except connection.Error as error:
                raise exc.DisconnectionError from error

    return shared


def _answers(connection: Any) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except connection.Error:
        return False
    return True


def _after_fork() -> None:
    """The parent goes on with its connections; a child that used one, too, would get the parent's answers."""
    global _lock  # a thread of the parent may have held it
    _lock = threading.Lock()
    for shared in _engines.values():
        shared.engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)
