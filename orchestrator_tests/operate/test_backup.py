"""Backup, restore and migration, of SQLite and of a real PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from orchestrator.errors import SettingsError
from orchestrator.operate.backup import backup, restore
from orchestrator.operate.migrate import migrate
from orchestrator.storage.lease import HomeLock, lease_of
from orchestrator.storage.migration import SQLITE_FILES, Schema, require_current, schema_of
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.postgres import PASSWORD, Postgres

POSTGRES = pytest.param("postgres", marks=pytest.mark.services)


@dg.op
def greet() -> None:
    dg.get_dagster_logger().info("hello")


@dg.job
def greeting() -> None:
    greet()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", POSTGRES])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DAGSTER_HOME whose runs lie where the parameter says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("server")
        database = server.new_database()
        server.query("CREATE SCHEMA orch", database=database)
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"{server.url(database)}?options=-csearch_path%3Dorch")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", home)
    return home


def _run(home: Path) -> str:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return greeting.execute_in_process(instance=instance).run_id


def _runs(home: Path) -> dict[str, list[str]]:
    """Run → the lines that it has logged."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return {
            run.run_id: [entry.user_message for entry in instance.all_logs(run.run_id) if not entry.is_dagster_event]
            for run in instance.get_runs()
        }


def test_what_was_backed_up_is_what_is_restored(home: Path, tmp_path: Path) -> None:
    before = _run(home)
    file = tmp_path / "backup"
    backup(home, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    after = _run(home)
    assert set(_runs(home)) == {before, after}
    with pytest.raises(SettingsError, match=r"there are 2 runs in .* say --force to lose them"):
        restore(home, file, force=False)
    assert set(_runs(home)) == {before, after}
    restore(home, file, force=True)
    assert _runs(home) == {before: ["hello"]}
    _run(home)
    assert not list(tmp_path.glob("backup.*"))


def test_an_empty_database_is_filled_without_force(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(home)
    backup(home, tmp_path / "backup")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", other)
    if lease_of(home).__class__ is not HomeLock:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.delete_run(run)
    assert _runs(other) == {}  # makes the tables
    restore(other, tmp_path / "backup", force=False)
    assert _runs(other) == {run: ["hello"]}


def test_nothing_is_restored_while_a_daemon_runs(home: Path, tmp_path: Path) -> None:
    _run(home)
    backup(home, tmp_path / "backup")
    lease = lease_of(home)
    assert lease.take() is None
    with pytest.raises(SettingsError, match=r"cannot restore now: .* stop every `serve` first"):
        restore(home, tmp_path / "backup", force=True)
    lease.release()
    restore(home, tmp_path / "backup", force=True)


def test_no_file_is_overwritten_and_no_other_file_is_restored(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing to back up"):
        backup(home, tmp_path / "backup")
    assert list(tmp_path.iterdir()) == [home]
    run = _run(home)
    file = tmp_path / "backup"
    file.write_text("precious")
    with pytest.raises(SettingsError, match="exists already"):
        backup(home, file)
    assert file.read_text() == "precious"
    for text in (b"precious", b"PGDMPbroken", b""):
        file.write_bytes(text)
        with pytest.raises(SettingsError):
            restore(home, file, force=True)
    with pytest.raises(SettingsError, match="cannot read"):
        restore(home, tmp_path / "nothing", force=True)
    assert set(_runs(home)) == {run}


@pytest.mark.services
def test_a_run_that_goes_on_meanwhile_makes_no_broken_backup(home: Path, tmp_path: Path) -> None:
    _run(home)
    code = (
        "import dagster as dg, sys\n"
        "from orchestrator_tests.operate.test_backup import greeting\n"
        "with dg.DagsterInstance.from_config(sys.argv[1]) as instance:\n"
        "    print('begins', flush=True)\n"
        "    for _ in range(1000): greeting.execute_in_process(instance=instance)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begins\n"
        backup(home, tmp_path / "backup")
        writer.kill()
    restore(home, tmp_path / "backup", force=True)
    runs = _runs(home)
    assert len(runs) >= 1


@pytest.mark.services
@pytest.mark.parametrize("home", ["postgres"], indirect=True)
def test_no_argument_of_a_program_holds_the_password(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(home)
    commands: list[str] = []
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run

    def watched(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(argv))
        return run(argv, **options)

    monkeypatch.setattr(f"{backup.__module__}.subprocess.run", watched)
    backup(home, tmp_path / "backup")
    restore(home, tmp_path / "backup", force=True)
    assert [command.split()[0].rpartition("/")[2] for command in commands] == ["pg_dump", "pg_restore"]
    assert not any(PASSWORD in command or "p%40ss" in command for command in commands)
    assert PASSWORD.encode() not in (tmp_path / "backup").read_bytes()


def _make_older(home: Path, server: Postgres | None) -> None:
    """As an older Dagster has left it: its last migration is not there."""
    if server:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            engine = instance.run_storage._engine  # type: ignore[attr-defined]
            with engine.connect() as connection:
                connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'f495c27d5019'")
        return
    for name in SQLITE_FILES:
        with contextlib.closing(sqlite3.connect(home / name)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'f495c27d5019'")


def test_an_older_database_is_refused_and_migrated(home: Path, request: pytest.FixtureRequest) -> None:
    lines: list[str] = []
    assert schema_of(home) is Schema.NONE
    migrate(home, say=lines.append)
    assert lines[-1].startswith("Nothing to migrate in")
    run = _run(home)
    require_current(home)
    is_sqlite = isinstance(lease_of(home), HomeLock)
    _make_older(home, None if is_sqlite else request.getfixturevalue("server"))
    assert schema_of(home) is Schema.OLD
    with pytest.raises(SettingsError, match=r"run `orchestrator backup FILE`, then `orchestrator migrate`"):
        require_current(home)
    lease = lease_of(home)
    assert lease.take() is None
    with pytest.raises(SettingsError, match="cannot migrate now"):
        migrate(home, say=lines.append)
    lease.release()
    migrate(home, say=lines.append)
    assert lines[-1].startswith("Migrated ")
    require_current(home)
    assert _runs(home) == {run: ["hello"]}
    migrate(home, say=lines.append)
    assert lines[-1].startswith("Nothing to migrate")
