"""Backup and restore of what Dagster keeps: its SQLite files, or its tables in PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.operate.home import private_files
from orchestrator.storage.address import PostgresAddress, postgres_address
from orchestrator.storage.lease import require_free

DATABASES = ("history/runs.db", "history/runs/*.db", "schedules/schedules.db")
CUSTOM_FORMAT = b"PGDMP"
"""How a file of `pg_dump --format=custom` begins."""


def backup(home: Path, file: Path) -> None:
    """Write everything that Dagster keeps in its database into a new file, which its owner alone may read.

    A `serve` may run meanwhile: what is written is what was there at one moment, of each SQLite file or of PostgreSQL.

    Args:
        home: the DAGSTER_HOME.
        file: must not exist.

    Raises:
        SettingsError: there is nothing to back up, the file exists, or the database cannot be read.
    """
    if file.exists():
        raise SettingsError(f"{file} exists already; name another file, or remove it")
    address = postgres_address()
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        with private_files():
            if address is None:
                _pack(home, unfinished)
            else:
                tables = [word for table in _tables(address) for word in ("--table", table)]
                if not tables:
                    raise SettingsError(f"there are no tables of Dagster in {address}: nothing to back up")
                options = ["--format=custom", "--no-owner", "--no-privileges", *tables]
                _run(address, ["pg_dump", *options, "--file", str(unfinished)])
        unfinished.rename(file)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def restore(home: Path, file: Path, *, force: bool) -> None:
    """Replace everything that Dagster keeps in its database by what a backup holds.

    Args:
        home: the DAGSTER_HOME.
        file: of `backup`, of the same kind of database.
        force: also when there are runs, which are lost.

    Raises:
        SettingsError: a `serve` runs, there are runs and no `force`, or the file or the database cannot be used.
    """
    address = postgres_address()
    try:
        with file.open("rb") as opened:
            is_of_postgres = opened.read(len(CUSTOM_FORMAT)) == CUSTOM_FORMAT
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    if is_of_postgres != (address is not None):
        kind = "PostgreSQL" if is_of_postgres else "SQLite"
        raise SettingsError(f"{file} is a backup of {kind}: set or take out DAGSTER_POSTGRES_URL, or name another file")
    home.mkdir(parents=True, exist_ok=True)
    require_free(home, "restore")
    runs = _count_sqlite(home) if address is None else _count_postgres(address)
    if runs and not force:
        raise SettingsError(
            f"there are {runs} runs in {address or home}, which would be lost; say --force to lose them"
        )
    if address is None:
        with private_files():
            _unpack(file, home)
    else:
        options = ["--clean", "--if-exists", "--single-transaction", "--no-owner", "--no-privileges"]
        _run(address, ["pg_restore", *options, "--dbname=service=orchestrator", str(file)])


# ---- SQLite


def _files(home: Path) -> list[Path]:
    return sorted({path for pattern in DATABASES for path in home.glob(pattern)})


def _pack(home: Path, file: Path) -> None:
    sources = _files(home)
    if not sources:
        raise SettingsError(f"there are no databases of Dagster in {home}: nothing to back up")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, tarfile.open(file, "w:gz") as archive:
        for source in sources:
            copy = Path(folder, "copy.db")
            with (
                contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as original,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                try:
                    original.backup(target)
                except sqlite3.Error as error:
                    raise SettingsError(f"cannot read {source}: {error}") from error
            archive.add(copy, arcname=str(source.relative_to(home)))
            copy.unlink()


def _unpack(file: Path, home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home) as folder:
        try:
            with tarfile.open(file, "r:gz") as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SettingsError(f"{file} is no backup of ours, or broken: {error}") from error
        copies = _files(Path(folder))
        if not copies:
            raise SettingsError(f"{file} holds no database of Dagster")
        for old in _files(home):
            for path in (old, Path(f"{old}-wal"), Path(f"{old}-shm")):
                path.unlink(missing_ok=True)
        for copy in copies:
            target = home / copy.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(copy, target)


def _count_sqlite(home: Path) -> int:
    file = home / "history" / "runs.db"
    if not file.exists():
        return 0
    with (
        contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection,
        contextlib.suppress(sqlite3.OperationalError),  # no such table
    ):
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])
    return 0


# ---- PostgreSQL


def _tables(address: PostgresAddress) -> list[str]:
    """Dagster's tables that are there, as pg_dump wants them named."""
    import sqlalchemy as db
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata  # noqa: TID251 - the names of the tables
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata  # noqa: TID251 - likewise
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata  # noqa: TID251 - likewise

    from orchestrator.storage.engine import shared_engine
    from orchestrator.storage.faults import said_in_words

    metadata = (SqlEventLogStorageMetadata, RunStorageSqlMetadata, ScheduleStorageSqlMetadata)
    ours = {"alembic_version", *(name for each in metadata for name in each.tables)}
    query = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 2"
    try:
        with shared_engine(address).engine.connect() as connection:
            found = connection.execute(db.text(query)).all()
    except db.exc.DBAPIError as error:
        raise said_in_words(error, address) from None
    return [f'"{schema}"."{table}"' for schema, table in found if table in ours]


def _count_postgres(address: PostgresAddress) -> int:
    import sqlalchemy as db

    from orchestrator.storage.engine import shared_engine

    if not any(table.endswith('."runs"') for table in _tables(address)):
        return 0
    with shared_engine(address).engine.connect() as connection:
        return int(connection.execute(db.text("SELECT count(*) FROM runs")).scalar_one())


def _run(address: PostgresAddress, command: list[str]) -> None:
    """Run a program of PostgreSQL's client, which finds the address in a file that we alone may read."""
    program = shutil.which(command[0])
    if program is None:
        raise SettingsError(
            f"{command[0]} is not installed: install PostgreSQL's client, not older than the server "
            "(Debian: apt-get install postgresql-client)"
        )
    with _service_file(address) as file:
        environment = {**os.environ, "PGSERVICEFILE": str(file), "PGSERVICE": "orchestrator"}
        environment.pop("DAGSTER_POSTGRES_URL", None)
        run = subprocess.run(
            [program, *command[1:]], env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        raise SettingsError(f"{command[0]} has failed: {' '.join(lines[:3]) or f'exit status {run.returncode}'}")


@contextlib.contextmanager
def _service_file(address: PostgresAddress) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # 0700
        file = Path(folder, "service")
        file.touch(mode=0o600)
        file.write_text(address.service(), encoding="utf-8")
        yield file
