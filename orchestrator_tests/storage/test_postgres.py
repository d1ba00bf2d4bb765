"""Dagster's storages on a real PostgreSQL: addresses of providers, one connection, few round trips, faults in words."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as db

from orchestrator.errors import SettingsError
from orchestrator.resources.retry import POSTGRES
from orchestrator.storage.address import PostgresAddress
from orchestrator.storage.postgres import PostgresEvents, PostgresStorage
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.storage.conftest import OpenInstance
from orchestrator_tests.support.dagster_internals import (
    BulkActionsFilter,
    BulkActionStatus,
    DagsterRunAlreadyExists,
    InstigatorType,
    PartitionBackfill,
    TickData,
    TickStatus,
)
from orchestrator_tests.support.postgres import HOST, PASSWORD, USER, Postgres, pgbouncer
from orchestrator_tests.support.run_records import failed_run
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@dg.asset
def number() -> dg.MaterializeResult[None]:
    log = dg.get_dagster_logger()
    for count in range(50):
        log.info(f"line {count}")
    return dg.MaterializeResult(metadata={"n": 1}, tags={"colour": "red"})


@dg.asset_check(asset=number)
def is_good() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


DEFINITIONS = dg.Definitions([number], asset_checks=[is_good], jobs=[dg.define_asset_job("all")])


def _run(instance: dg.DagsterInstance) -> str:
    result = DEFINITIONS.resolve_job_def("all").execute_in_process(instance=instance)
    assert result.success
    return result.run_id


def _assert_recorded(instance: dg.DagsterInstance, run_id: str) -> None:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.SUCCESS
    records = instance.all_logs(run_id)
    lines = [record.user_message for record in records if record.user_message.startswith("line ")]
    assert lines == [f"line {count}" for count in range(50)]
    kinds = [record.dagster_event_type for record in records if record.is_dagster_event]
    assert kinds.index(dg.DagsterEventType.STEP_START) < kinds.index(dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert kinds[-1] is dg.DagsterEventType.RUN_SUCCESS
    event = instance.get_latest_materialization_event(dg.AssetKey("number"))
    assert event is not None
    assert event.run_id == run_id


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_pasted_address_with_a_schema_holds_everything_in_that_schema(
    scheme: str, postgres: Postgres, open_instance: OpenInstance
) -> None:
    database = postgres.new_database()
    postgres.query("CREATE SCHEMA orch", database=database)
    option = "options=-csearch_path=orch" if scheme == "postgres" else "options=-csearch_path%3Dorch"
    url = (
        f"{scheme}://{USER}:{PASSWORD}@{HOST}:{postgres.port}/{database}?sslmode=prefer&{option}&channel_binding=prefer"
    )
    with open_instance(url) as instance:
        _assert_recorded(instance, _run(instance))
        instance.optimize_for_webserver(15_000, 3_600, 20)
        _assert_recorded(instance, _run(instance))
    tables = postgres.query("SELECT schemaname, count(*) FROM pg_tables GROUP BY 1", database=database)
    schemas = {schema: count for schema, count in tables if schema not in ("pg_catalog", "information_schema")}
    assert set(schemas) == {"orch"}
    assert schemas["orch"] > 20


def test_through_a_pgbouncer_it_works_with_the_schema_of_the_role(
    postgres: Postgres, open_instance: OpenInstance
) -> None:
    database = postgres.new_database()
    postgres.query("CREATE SCHEMA orch", database=database)
    postgres.query(f"ALTER ROLE {USER} IN DATABASE {database} SET search_path = orch", database=database)
    with pgbouncer(postgres) as port:
        with pytest.raises(SettingsError, match=f"ALTER ROLE {USER} IN DATABASE {database} SET search_path = orch"):
            open_instance(f"{postgres.url(database, port=port)}?options=-csearch_path%3Dorch")
        with open_instance(postgres.url(database, port=port)) as instance:
            _assert_recorded(instance, _run(instance))
    assert postgres.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", database=database) == [(0,)]


def test_what_is_wrong_is_said_in_one_sentence(postgres: Postgres, open_instance: OpenInstance) -> None:
    database = postgres.new_database()
    postgres.query("DROP ROLE IF EXISTS guest")
    postgres.query("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    at = f"{HOST}:{postgres.port}"
    expected = {
        f"postgresql://{USER}:wrong@{at}/{database}": "the user or the password is wrong",
        f"postgresql://nobody:guest@{at}/{database}": "the user or the password is wrong",
        postgres.url("no_such_database"): "there is no such database",
        f"postgresql://{USER}:guest@no-such-host.invalid/{database}": "there is no such host",
        f"{postgres.url(database)}?sslmode=require": "take sslmode out",
        f"{postgres.url(database)}?options=-csearch_path=nowhere": "CREATE SCHEMA nowhere",
        f"{postgres.url(database)}?pgbouncer=true": "libpq does not know an option",
        f"postgresql://guest:guest@{at}/{database}": "GRANT CREATE",
    }
    for url, words in expected.items():
        with pytest.raises(SettingsError) as refused:
            open_instance(url)
        assert words in str(refused.value), refused.value
        assert "DAGSTER_POSTGRES_URL" in str(refused.value)
        assert "guest:guest" not in str(refused.value)
        assert PASSWORD not in str(refused.value)


def test_a_server_that_is_not_there_is_waited_for_and_then_named() -> None:
    address = PostgresAddress.parse(f"postgresql://u:p@{HOST}:{(port := free_port(HOST))}/x")
    with pytest.raises(SettingsError, match=rf"127.0.0.1:{port}/x\) cannot be used: it is not there at this moment"):
        PostgresStorage(address, policy=POSTGRES.with_total(1))


class Statements:
    """What is sent to a server meanwhile."""

    def __init__(self, engine: db.Engine) -> None:
        self.texts: list[str] = []
        self.connections = 0
        db.event.listen(engine, "before_cursor_execute", self._keep)
        db.event.listen(engine, "connect", self._count)

    def _keep(self, _c: object, _k: object, statement: str, *_rest: object) -> None:
        self.texts.append(" ".join(statement.split()))

    def _count(self, *_: object) -> None:
        self.connections += 1


@pytest.fixture
def instance(postgres: Postgres, open_instance: OpenInstance) -> Iterator[dg.DagsterInstance]:
    with open_instance(postgres.url(postgres.new_database())) as instance:
        yield instance


def _engine(instance: dg.DagsterInstance) -> db.Engine:
    engine = instance.event_log_storage._engine  # type: ignore[attr-defined]
    assert isinstance(engine, db.Engine)
    return engine


def test_a_run_has_one_connection_and_its_log_lines_go_together(instance: dg.DagsterInstance) -> None:
    _run(instance)
    statements = Statements(_engine(instance))
    run_id = _run(instance)
    assert statements.connections == 0  # there was one already
    inserts = [text for text in statements.texts if text.startswith("INSERT INTO event_logs")]
    events = [record for record in instance.all_logs(run_id) if record.is_dagster_event]
    assert len(inserts) <= len(events) + 10  # not 50 more
    assert not [text for text in statements.texts if "NOTIFY" in text]


def test_all_instances_of_a_process_share_the_connection(
    postgres: Postgres, instance: dg.DagsterInstance, open_instance: OpenInstance
) -> None:
    database = os.environ["DAGSTER_POSTGRES_URL"].rpartition("/")[2]
    with open_instance(os.environ["DAGSTER_POSTGRES_URL"]) as other:
        for each in (instance, other, instance):
            each.get_runs()
            each.all_instigator_state()
    assert postgres.connections(database) == 1


def test_a_line_is_seen_without_another_event(instance: dg.DagsterInstance) -> None:
    run_id = _run(instance)
    line = next(record for record in instance.all_logs(run_id) if record.user_message == "line 1")
    instance.store_event(line._replace(user_message="alone", run_id="other"))
    query = db.text("SELECT count(*) FROM event_logs WHERE run_id = 'other'")

    def is_there() -> bool:
        with _engine(instance).connect() as connection:
            return bool(connection.execute(query).scalar())

    until(is_there)


def test_lines_of_many_threads_are_all_there_and_in_the_order_of_each(instance: dg.DagsterInstance) -> None:
    run_id = _run(instance)
    line = next(record for record in instance.all_logs(run_id) if record.user_message == "line 1")

    def log(name: str) -> None:
        for count in range(300):
            instance.store_event(line._replace(user_message=f"{name} {count}", run_id="other"))

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = [record.user_message.split() for record in instance.all_logs("other")]
    assert len(words) == 900
    for name in "abc":
        assert [int(count) for thread, count in words if thread == name] == list(range(300))


def test_a_forked_child_has_a_connection_of_its_own(instance: dg.DagsterInstance) -> None:
    run_id = _run(instance)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(instance.get_run_by_id(run_id) for _ in range(20)) else 1)
    for _ in range(20):
        assert instance.get_run_by_id(run_id) is not None
    assert os.waitpid(pid, 0)[1] == 0


FIFTY = """
import os, sys
from orchestrator.storage.address import PostgresAddress
from orchestrator.storage.postgres import PostgresEvents, PostgresStorage
address = PostgresAddress.parse(sys.stdin.readline())
PostgresStorage(address)
ready_read, ready_write = os.pipe()
over_read, over_write = os.pipe()
for _ in range(50):
    if os.fork() == 0:
        os.close(over_write)
        storage = PostgresStorage(address)
        storage.run_storage.get_runs()
        storage.schedule_storage.all_instigator_state()
        os.write(ready_write, b"x")
        os.read(over_read, 1)
        os._exit(0)
for _ in range(50):
    os.read(ready_read, 1)
print("open", flush=True)
sys.stdin.readline()
"""


def test_fifty_processes_with_open_storage_hold_less_than_sixty_connections(postgres: Postgres) -> None:
    database = postgres.new_database()
    argv = [sys.executable, "-c", FIFTY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(f"{postgres.url(database)}\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "open\n"
        assert 50 <= postgres.connections(database) < 60
        parent.stdin.close()
    until(lambda: postgres.connections(database) == 0)


def test_several_processes_may_make_the_tables_at_once(postgres: Postgres, tmp_path: Path) -> None:
    database = postgres.new_database()
    code = (
        "import sys; from orchestrator.storage.address import PostgresAddress as A\n"
        "from orchestrator.storage.postgres import PostgresStorage as S\n"
        "S(A.parse(sys.stdin.read())).run_storage.get_runs()\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write(postgres.url(database))
        child.stdin.close()
    for child in children:
        assert child.stderr is not None
        errors = child.stderr.read()
        assert child.wait() == 0, errors


@contextmanager
def _answer_lost(instance: dg.DagsterInstance, postgres: Postgres, beginning: str) -> Iterator[None]:
    """The server does what the next statement of this kind wants, and the connection breaks before it says so."""
    engine = _engine(instance)

    def break_off(connection: db.Connection, cursor: Any, statement: str, *_rest: object) -> None:
        if statement.startswith(beginning):
            db.event.remove(engine, "after_cursor_execute", break_off)
            cursor.connection.commit()
            postgres.terminate(cursor.connection.info.backend_pid)
            cursor.execute("SELECT 1")  # raises, as the statement itself would

    db.event.listen(engine, "after_cursor_execute", break_off)
    yield
    assert not db.event.contains(engine, "after_cursor_execute", break_off)


@contextmanager
def _broken_before(instance: dg.DagsterInstance, postgres: Postgres, beginning: str) -> Iterator[None]:
    """The connection breaks when the next statement of this kind is about to be sent."""
    engine = _engine(instance)

    def break_off(connection: db.Connection, cursor: Any, statement: str, *_rest: object) -> None:
        if statement.startswith(beginning):
            db.event.remove(engine, "before_cursor_execute", break_off)
            postgres.terminate(cursor.connection.info.backend_pid)

    db.event.listen(engine, "before_cursor_execute", break_off)
    yield
    assert not db.event.contains(engine, "before_cursor_execute", break_off)


def test_what_was_written_although_no_answer_came_is_written_once(
    postgres: Postgres, instance: dg.DagsterInstance
) -> None:
    run_id = _run(instance)
    run = failed_run("all", partition="1")
    with _answer_lost(instance, postgres, "INSERT INTO runs"):
        instance.run_storage.add_run(run)
    with pytest.raises(DagsterRunAlreadyExists):
        instance.run_storage.add_run(run)
    line = next(record for record in instance.all_logs(run_id) if record.user_message == "line 1")
    with _answer_lost(instance, postgres, "INSERT INTO event_logs"):
        instance.store_event(line._replace(user_message="once", run_id="other"))
        assert [record.user_message for record in instance.all_logs("other")] == ["once"]
    event = next(record for record in instance.all_logs(run_id) if record.is_dagster_event)
    for store in (instance.store_event, lambda event: instance.event_log_storage.store_event_batch([event])):
        with _answer_lost(instance, postgres, "INSERT INTO event_logs"):
            store(event._replace(run_id=store.__name__))
        assert len(instance.all_logs(store.__name__)) == 1


def test_lines_that_were_written_although_nobody_heard_of_it_are_not_written_again_by_another_thread(
    postgres: Postgres, instance: dg.DagsterInstance
) -> None:
    run_id = _run(instance)
    line = next(record for record in instance.all_logs(run_id) if record.user_message == "line 1")
    storage = instance.event_log_storage
    assert isinstance(storage, PostgresEvents)
    storage.patience.policy = POSTGRES.with_total(0)
    with _answer_lost(instance, postgres, "INSERT INTO event_logs"):
        instance.store_event(line._replace(user_message="once", run_id="other"))
        with pytest.raises(db.exc.OperationalError):
            instance.all_logs("other")
    instance.store_event(line._replace(user_message="later", run_id="other"))
    query = db.text("SELECT count(*) FROM event_logs WHERE run_id = 'other'")

    def count() -> int:
        with _engine(instance).connect() as connection:
            return int(connection.execute(query).scalar_one())

    until(lambda: count() > 1)
    assert [record.user_message for record in instance.all_logs("other")] == ["once", "later"]


def test_ticks_states_tags_and_backfills_are_written_once_and_as_a_whole(
    postgres: Postgres, instance: dg.DagsterInstance
) -> None:
    _run(instance)
    schedules, runs = instance.schedule_storage, instance.run_storage
    assert schedules is not None
    tick = TickData("origin", "sensor", InstigatorType.SENSOR, TickStatus.STARTED, 1.5, selector_id="selector")
    with _answer_lost(instance, postgres, "INSERT INTO job_ticks"):
        written = schedules.create_tick(tick)
    (found,) = schedules.get_ticks("origin", "selector")
    assert (found.tick_id, found.tick_data) == (written.tick_id, tick)

    run = failed_run("all", partition="1")
    runs.add_run(run)
    with _broken_before(instance, postgres, "INSERT INTO run_tags"):
        instance.add_run_tags(run.run_id, {"colour": "red"})
    assert [found.run_id for found in instance.get_runs(dg.RunsFilter(tags={"colour": "red"}))] == [run.run_id]

    whole, heard = (
        PartitionBackfill(name, BulkActionStatus.REQUESTED, from_failure=False, tags=tags, backfill_timestamp=1.0)
        for name, tags in (("whole", {"colour": "red"}), ("heard", {}))
    )
    with _broken_before(instance, postgres, "INSERT INTO backfill_tags"):
        runs.add_backfill(whole)
    with _answer_lost(instance, postgres, "INSERT INTO bulk_actions"):
        runs.add_backfill(heard)
    assert {found.backfill_id for found in runs.get_backfills()} == {"whole", "heard"}
    assert runs.get_backfills(filters=BulkActionsFilter(tags={"colour": "red"})) == [whole]
