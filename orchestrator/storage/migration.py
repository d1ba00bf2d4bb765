"""Whether Dagster's tables are those of the Dagster that is installed; without importing it, because `serve` asks."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.resources.retry import POSTGRES, RetryPolicy
from orchestrator.storage.address import PostgresAddress, postgres_address

SQLITE_FILES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")


class Schema(Enum):
    """What Dagster's tables are."""

    NONE = "there are none yet"
    CURRENT = "those of the Dagster that is installed"
    OLD = "those of an older Dagster"
    FOREIGN = "those of a newer Dagster, or of none"


def schema_of(home: Path, *, policy: RetryPolicy = POSTGRES) -> Schema:
    """What the tables are that the settings lead to.

    Args:
        home: the DAGSTER_HOME.
        policy: how long to wait for PostgreSQL.

    Raises:
        SettingsError: the database cannot be used.
    """
    from alembic.script import ScriptDirectory  # only here, because it takes time

    dagster = find_spec("dagster")
    assert dagster is not None  # noqa: S101 - for the type checker: we depend on it
    assert dagster.origin is not None  # noqa: S101 - likewise
    scripts = ScriptDirectory(str(Path(dagster.origin).parent / "_core" / "storage" / "alembic"))
    address = postgres_address()
    found = set(_of_sqlite(home)) if address is None else set(_of_postgres(address, policy))
    if not found:
        return Schema.NONE
    if found == {scripts.get_current_head()}:
        return Schema.CURRENT
    known = {script.revision for script in scripts.walk_revisions()}
    return Schema.OLD if found <= known else Schema.FOREIGN


def require_current(home: Path) -> None:
    """Check that Dagster can work on the tables.

    Raises:
        SettingsError: it cannot; says what to do.
    """
    schema = schema_of(home)
    where = postgres_address() or home
    if schema is Schema.OLD:
        raise SettingsError(
            f"the tables in {where} are {schema.value}: run `orchestrator backup FILE`, then `orchestrator migrate`"
        )
    if schema is Schema.FOREIGN:
        raise SettingsError(
            f"the tables in {where} are {schema.value}: install the orchestrator that made them, or restore a backup"
        )


def _of_sqlite(home: Path) -> Iterator[str]:
    for name in SQLITE_FILES:
        if (home / name).exists():
            uri = f"{(home / name).as_uri()}?mode=ro"
            with (
                contextlib.closing(sqlite3.connect(uri, uri=True)) as connection,
                contextlib.suppress(sqlite3.OperationalError),  # no such table
            ):
                yield from (row[0] for row in connection.execute("SELECT version_num FROM alembic_version"))


def _of_postgres(address: PostgresAddress, policy: RetryPolicy) -> list[str]:
    import sqlalchemy as db
    from sqlalchemy import exc

    from orchestrator.storage.engine import shared_engine
    from orchestrator.storage.faults import said_in_words
    from orchestrator.storage.patience import Patience

    def ask() -> list[str]:
        with shared_engine(address).engine.connect() as connection:
            if connection.execute(db.text("SELECT to_regclass('alembic_version')")).scalar() is None:
                return []
            return list(connection.execute(db.text("SELECT version_num FROM alembic_version")).scalars())

    try:
        revisions: list[str] = Patience(policy).call(ask)
    except exc.DBAPIError as error:
        raise said_in_words(error, address) from None
    return revisions
