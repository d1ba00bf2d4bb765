"""Dagster's three storages in one PostgreSQL: one connection, few round trips, and patience.

What they do is Dagster's, but for writing events and adding runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import sqlalchemy as db
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickData
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.runs.base import RunStorage
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.schedules.base import ScheduleStorage
from dagster._core.storage.schedules.schema import JobTickTable
from dagster._serdes import serialize_value
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from dagster_postgres.utils import retry_pg_creation_fn
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from orchestrator.errors import SettingsError
from orchestrator.resources.retry import POSTGRES, POSTGRES_FOR_THE_UI, RetryPolicy
from orchestrator.storage.address import URL_SETTING, PostgresAddress
from orchestrator.storage.engine import SharedEngine, shared_engine
from orchestrator.storage.faults import said_in_words
from orchestrator.storage.log_lines import LogLines
from orchestrator.storage.patience import Patience, Patient

MAIN_TABLES = ("runs", "event_logs", "jobs")


class _OnSharedEngine:
    """How our three storages come to a connection, and what they need not ask twice."""

    _engine: db.Engine
    _shared: SharedEngine
    patience: Patience

    def _share(self, shared: SharedEngine, patience: Patience) -> None:
        self._shared = shared
        self._engine = shared.engine
        self.patience = patience
        self._tables: set[str] = set()
        self._open = threading.local()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if opened := getattr(self._open, "connection", None):
            yield opened
            return
        connection = self.patience.call(self._engine.connect)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._connection() as connection:
            in_transaction = connection.execution_options(isolation_level="READ COMMITTED")
            with in_transaction.begin():
                yield in_transaction

    @contextmanager
    def _together(self) -> Iterator[Connection]:
        """Whatever this thread writes meanwhile is there as a whole or not at all, so that it can be repeated."""
        with self._transaction() as connection:
            self._open.connection = connection
            try:
                yield connection
            finally:
                self._open.connection = None

    def _has_table(self, name: str) -> bool:
        if name not in self._tables:
            with self._connection() as connection:
                if not self._engine.dialect.has_table(connection, name):
                    return False
                self._tables.add(name)
        return True

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Answer soon, or with an error; the pool stays as it is."""
        if self._shared.statement_timeout_ms != statement_timeout:
            self._shared.limit_statements(statement_timeout)
        self.patience.policy = POSTGRES_FOR_THE_UI


class PostgresRuns(_OnSharedEngine, Patient, PostgresRunStorage, of=RunStorage):
    """Dagster's runs."""

    def __init__(self, shared: SharedEngine, patience: Patience) -> None:
        self._inst_data = None
        self._index_migration_cache: dict[str, bool] = {}
        self._has_stats: bool | None = None
        self._has_backfill_id: bool | None = None
        self._share(shared, patience)

    connect = _OnSharedEngine._connection

    def has_run_stats_index_cols(self) -> bool:
        """As Dagster has it, asked once."""
        if self._has_stats is None:
            self._has_stats = super().has_run_stats_index_cols()
        return self._has_stats

    def has_backfill_id_column(self) -> bool:
        """As Dagster has it, asked once."""
        if self._has_backfill_id is None:
            self._has_backfill_id = super().has_backfill_id_column()
        return self._has_backfill_id

    def _core_add_run(self, col_values: dict[str, Any], tags: Mapping[str, str]) -> None:
        """Add a run and its tags at once, or neither; again, when it is not known whether it was heard."""
        from dagster._core.errors import DagsterRunAlreadyExists

        try:
            with self._transaction() as connection:
                connection.execute(RunsTable.insert().values(**col_values))
                if tags:
                    rows = [{"run_id": col_values["run_id"], "key": key, "value": value} for key, value in tags.items()]
                    connection.execute(RunTagsTable.insert(), rows)
        except exc.IntegrityError as error:
            if self.patience.is_repeating and self._is_this_run(col_values):
                return
            raise DagsterRunAlreadyExists from error

    def add_run_tags(self, run_id: str, new_tags: Mapping[str, str]) -> None:
        """As Dagster has it, at once: it writes the run, then its tags, and asks the run which of them are new."""
        with self._together():
            super().add_run_tags(run_id, new_tags)

    def handle_run_event(self, run_id: str, event: dg.DagsterEvent, update_timestamp: datetime | None = None) -> None:
        """As Dagster has it; of a failure, which it also writes a tag for, at once."""
        with self._together() if event.is_failure else nullcontext():
            super().handle_run_event(run_id, event, update_timestamp)

    def add_backfill(self, partition_backfill: PartitionBackfill) -> None:
        """As Dagster has it, at once, and once."""
        if self.patience.is_repeating and self.get_backfill(partition_backfill.backfill_id) is not None:
            return
        with self._together():
            super().add_backfill(partition_backfill)

    def _is_this_run(self, col_values: Mapping[str, Any]) -> bool:
        run: DagsterRun | None = self._get_run_by_id(col_values["run_id"])
        return run is not None and serialize_value(run) == col_values["run_body"]


class PostgresSchedules(_OnSharedEngine, Patient, PostgresScheduleStorage, of=ScheduleStorage):
    """Dagster's schedules, sensors and ticks."""

    def __init__(self, shared: SharedEngine, patience: Patience) -> None:
        self._inst_data = None
        self._share(shared, patience)

    @contextmanager
    def connect(self, run_id: str | None = None) -> Iterator[Connection]:
        """A connection; which run it is for makes no difference."""
        with self._connection() as connection:
            yield connection

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; asked once when there is."""
        return self._has_table(table_name)

    def create_tick(self, tick_data: TickData) -> InstigatorTick:
        """As Dagster has it, once: of two ticks, one would look for ever as if it went on."""
        table = JobTickTable.c
        if self.patience.is_repeating:
            query = db.select(table.id).where(
                table.job_origin_id == tick_data.instigator_origin_id, table.tick_body == serialize_value(tick_data)
            )
            with self._connection() as connection:
                tick_id = connection.execute(query).scalar()
            if tick_id is not None:
                return InstigatorTick(tick_id, tick_data)
        return super().create_tick(tick_data)

    def add_instigator_state(self, state: InstigatorState) -> InstigatorState:
        """As Dagster has it, at once, and once."""
        if self.patience.is_repeating:
            found = self.get_instigator_state(state.instigator_origin_id, state.selector_id)
            if found == state:
                return state
        with self._together():
            return super().add_instigator_state(state)


class PostgresEvents(_OnSharedEngine, Patient, PostgresEventLogStorage, of=EventLogStorage):
    """Dagster's events: each costs one round trip, and lines of logs one together."""

    def __init__(self, shared: SharedEngine, patience: Patience) -> None:
        self._inst_data = None
        self._event_watcher = None
        self._secondary_index_cache: dict[str, bool] = {}
        self._share(shared, patience)
        self._lines = LogLines(
            lambda events, may_be_there: patience.call(lambda: self._insert(events, may_be_there=may_be_there))
        )

    _connect = _OnSharedEngine._connection

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; asked once when there is."""
        return self._has_table(table_name)

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, and the lines before it.

        Dagster's own takes a connection, two statements (the second is a NOTIFY that no Dagster listens to any more)
        and, for an asset's event, a transaction that may fail when the event is already there.
        """
        if not event.is_dagster_event:
            self._lines.add(event)
            return
        self._lines.write_with(event)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events, each by itself: Dagster's own writes some twice when it is repeated."""
        for event in events:
            self.store_event(event)

    def _insert(self, events: Sequence[EventLogEntry], *, may_be_there: bool) -> None:
        """Write some events in order, the last of which may be one that concerns an asset."""
        if may_be_there or self.patience.is_repeating:
            events = self._missing(events)
            if not events:
                return
        last = events[-1]
        kind = last.dagster_event_type if last.is_dagster_event else None
        concerns_asset = kind in ASSET_EVENTS and bool(last.get_dagster_event().asset_key)
        statement = self.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
        concerns_check = kind in ASSET_CHECK_EVENTS
        with self._together() if concerns_asset or concerns_check else self._connection() as connection:
            event_id = max(int(row[0]) for row in connection.execute(statement))
            if concerns_asset:
                self._store_asset_event_tags(connection, [last], [event_id])
                self._store_asset_event(connection, last, event_id)
            if concerns_check:  # both or neither: when it is repeated, the event's being there says that all is
                self.store_asset_check_event(last, event_id)

    index_connection = _OnSharedEngine._connection

    def _missing(self, events: Sequence[EventLogEntry]) -> Sequence[EventLogEntry]:
        """Those that are not there: the answer to an INSERT may have been lost, and the INSERT not."""
        table = SqlEventLogStorageTable.c
        times = {datetime.fromtimestamp(event.timestamp, UTC).replace(tzinfo=None) for event in events}
        texts = {serialize_value(event): event for event in events}
        query = db.select(table.event).where(
            table.run_id.in_({event.run_id for event in events}),
            table.timestamp.in_(times),
            table.event.in_(list(texts)),
        )
        with self._connection() as connection:
            there = {row[0] for row in connection.execute(query)}
        return [event for text, event in texts.items() if text not in there]

    def get_records_for_run(self, *arguments: Any, **options: Any) -> Any:
        """As Dagster has it, with the lines that this process has not written yet."""
        self._lines.write()
        return super().get_records_for_run(*arguments, **options)

    def delete_events(self, run_id: str) -> None:
        """As Dagster has it, with the lines that this process has not written yet."""
        self._lines.write()
        super().delete_events(run_id)

    @contextmanager
    def index_transaction(self) -> Iterator[Connection]:
        """A transaction."""
        with self._transaction() as connection:
            yield connection

    def dispose(self) -> None:
        """Write what is left."""
        self._lines.write()
        super().dispose()


class PostgresStorage(DagsterStorage[dg.DagsterInstance]):
    """Runs, events and schedules in one PostgreSQL.

    Args:
        address: the database.
        policy: how long a call waits for it.

    Raises:
        SettingsError: it cannot be used as it is; says what to do.
    """

    def __init__(
        self,
        address: PostgresAddress,
        *,
        policy: RetryPolicy = POSTGRES,
    ) -> None:
        self.address = address
        shared = shared_engine(address)
        patience = Patience(policy)
        self._runs = PostgresRuns(shared, patience)
        self._events = PostgresEvents(shared, patience)
        self._schedules = PostgresSchedules(shared, patience)
        with shared.lock:
            if not shared.is_ready:
                self._prepare(shared, patience)
                shared.is_ready = True

    def _prepare(self, shared: SharedEngine, patience: Patience) -> None:
        """Look whether the database can be used, and make the tables of a new one."""
        try:
            schema, tables = patience.call(lambda: _schema_and_tables(shared.engine))
            if schema is None:
                name = self.address.schema
                raise SettingsError(
                    f"{URL_SETTING} ({self.address}): there is no schema {name or 'of the search_path'} in this "
                    f"database, or the user may not use it: CREATE SCHEMA {name or 'orchestrator'} AUTHORIZATION "
                    f"{self.address.user or 'the_user'};"
                )
            if not tables.issuperset(MAIN_TABLES):
                _make_tables(self._runs, self._events, self._schedules, tables)
        except exc.DBAPIError as error:
            raise said_in_words(error, self.address) from None

    @property
    def run_storage(self) -> PostgresRuns:
        """Dagster's runs."""
        return self._runs

    @property
    def event_log_storage(self) -> PostgresEvents:
        """Dagster's events."""
        return self._events

    @property
    def schedule_storage(self) -> PostgresSchedules:
        """Dagster's schedules, sensors and ticks."""
        return self._schedules


def _schema_and_tables(engine: db.Engine) -> tuple[str | None, set[str]]:
    query = "SELECT current_schema(), array(SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema())"
    with engine.connect() as connection:
        schema, tables = connection.execute(db.text(query)).one()
    return schema, set(tables)


def _make_tables(runs: PostgresRuns, events: PostgresEvents, schedules: PostgresSchedules, tables: set[str]) -> None:
    """Make what is missing, as the constructors of Dagster's storages do it; several processes may be at it."""
    if "runs" not in tables:
        retry_pg_creation_fn(runs._init_db)
        runs.migrate()
        runs.optimize()
    if "event_logs" not in tables:
        retry_pg_creation_fn(events._init_db)
        events.reindex_events()
        events.reindex_assets()
    if "jobs" not in tables:
        retry_pg_creation_fn(schedules._init_db)
