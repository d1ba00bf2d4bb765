"""What we ask of Dagster and Dagster does not promise: the only file that may break with its next version.

A method without `@public`, or a name out of `dagster._…`, is used in this file and nowhere else.
`orchestrator_tests/test_dagster_instance.py` compares each of them with the Dagster that is installed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionsFilter

from orchestrator.errors import SettingsError

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition as UnresolvedAssetJobDefinition,
    )
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

_tagging = threading.Lock()


# ---- Runs


def add_run_tags(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run.

    Dagster reads all tags of a run and writes them back: two threads of ours at once would undo each other's.
    """
    with _tagging:
        instance.add_run_tags(run_id, dict(tags))


def report_failed(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str, *, of_step: bool = False) -> None:
    """Mark a run as failed; Dagster then decides whether to retry it.

    Args:
        instance: Dagster.
        run: which.
        message: why.
        of_step: as a step that fails does it, which is not retried unless dagster.yaml says so; else as a worker that
            dies does it.
    """
    reason = JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE) if of_step else None
    instance.report_run_failed(run, message, reason)


def report_canceled(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    """Mark a run as cancelled."""
    instance.report_run_canceled(run, message)


def location_of(run: dg.DagsterRun) -> str | None:
    """The name of the code location that a run was launched from; None when it does not say."""
    origin = run.remote_job_origin
    return origin.location_name if origin else None


# ---- Retries and backfills


@dataclass(frozen=True, kw_only=True)
class RunRetries:
    """What dagster.yaml says under `run_retries`.

    Attributes:
        most: how often a run is retried whose tags do not say otherwise; 0: never.
        after_step_failure: whether a run is retried, too, that failed because of a step.
    """

    most: int
    after_step_failure: bool


def run_retries(instance: dg.DagsterInstance) -> RunRetries:
    """Dagster's own retries of whole runs, as configured."""
    return RunRetries(
        most=instance.run_retries_max_retries,
        after_step_failure=instance.run_retries_retry_on_asset_or_op_failure,
    )


def unfinished_backfills(instance: dg.DagsterInstance, ids: Collection[str]) -> frozenset[str]:
    """Those of some backfills that Dagster knows and has not finished with, in one query."""
    if not ids:
        return frozenset()
    found = instance.get_backfills(filters=BulkActionsFilter(backfill_ids=sorted(ids)))
    return frozenset(backfill.backfill_id for backfill in found if backfill.status not in BULK_ACTION_TERMINAL_STATUSES)


# ---- Assets


def materialized_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> AbstractSet[str]:
    """The partitions of an asset that have a materialisation."""
    return instance.get_materialized_partitions(asset)


def assets_of_job(repository: dg.RepositoryDefinition, job: str) -> frozenset[dg.AssetKey] | None:
    """What a job without a selection of its own materialises; None: this code location has no such job."""
    if not repository.has_job(job):
        return None
    return frozenset(repository.get_job(job).asset_layer.executable_asset_keys)


def has_step_of(steps: Collection[str], asset: dg.AssetKey) -> bool:
    """Whether one of these steps belongs to the asset's graph of ops."""
    return any(step.startswith(f"{asset.to_python_identifier()}.") for step in steps)


def sql_run_storage(instance: dg.DagsterInstance) -> SqlRunStorage | None:
    """The database of an instance's runs, for a query that Dagster has no method for; None: it is no database."""
    from dagster._core.storage.legacy_storage import LegacyRunStorage
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    storage = instance.run_storage
    if isinstance(storage, LegacyRunStorage):
        storage = storage._storage.run_storage
    return storage if isinstance(storage, SqlRunStorage) else None


# ---- Logs


def format_console_of_runs(formatter: logging.Formatter) -> None:
    """Have what runs log on the terminal written by this formatter.

    A run whose configuration names no logger gets Dagster's coloured one, whatever loggers its code location has.
    """
    import dagster._loggers as loggers

    def console_logger(name: str, level: str | int) -> logging.Logger:
        logger = logging.getLoggerClass()(name, level=level)
        handler = logging.StreamHandler()
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        return logger

    loggers.create_console_logger = console_logger  # type: ignore[attr-defined]


# ---- Values that all processes of one Dagster share


def kept_value(instance: dg.DagsterInstance, key: str) -> str | None:
    """A value in Dagster's own database; None: there is none.

    No request to the webserver reaches these values: they lie beside the daemons' cursors.
    """
    return instance.daemon_cursor_storage.get_cursor_values({key}).get(key)


def keep_value(instance: dg.DagsterInstance, key: str, value: str) -> str:
    """Keep a value, unless there is one already; return the one that all processes agree on.

    Dagster's own way to write them replaces what another process has just written, so that the database decides.

    Args:
        instance: Dagster.
        key: at most 64 characters, because MySQL compares no more of them.
        value: what to keep.

    Raises:
        SettingsError: this instance's storage is no database that we know.
    """
    # Late, because a code location needs no storage.
    from dagster._core.storage.runs.schema import KeyValueStoreTable
    from dagster._core.storage.runs.sql_run_storage import db_exc  # type: ignore[attr-defined]

    storage = sql_run_storage(instance)
    if storage is None:
        raise SettingsError(
            f"values that all processes share cannot be kept: {type(instance.run_storage).__name__} is no database; "
            "configure another storage in dagster.yaml"
        )
    try:
        with storage.connect() as connection:
            connection.execute(KeyValueStoreTable.insert().values(key=key, value=value))
    except db_exc.IntegrityError:
        pass  # another process was first
    kept = kept_value(instance, key)
    if kept is None:
        raise SettingsError("a value that all processes share was kept and is not there: look at Dagster's storage")
    return kept


def migrate(instance: dg.DagsterInstance, *, say: Callable[[str], None]) -> None:
    """Bring the tables of an instance to what this Dagster wants.

    Args:
        instance: Dagster.
        say: takes each line of what Dagster does.
    """
    instance.upgrade(say)


# ---- Pools


def set_pool_limit(instance: dg.DagsterInstance, *, pool: str, limit: int) -> None:
    """Limit how many runs may hold a slot of a pool at once; holds from now on, for runs in the queue, too.

    Args:
        instance: Dagster.
        pool: its name, e.g. `names.INSTANCE_POOL`.
        limit: most slots at once.

    Raises:
        SettingsError: this instance's storage keeps no limits.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        raise SettingsError(
            f"the limit {limit} of pool {pool!r} cannot be set: {type(storage).__name__} keeps none; "
            "configure another storage in dagster.yaml"
        )
    storage.set_concurrency_slots(pool, limit)


# ---- Sensor ticks


def location_name(context: dg.SensorEvaluationContext) -> str | None:
    """The name of the code location that a sensor lives in; None when it is evaluated outside of one."""
    origin = context.code_location_origin
    return origin.location_name if origin else None


@contextmanager
def logged_to_tick(context: dg.SensorEvaluationContext, *, threads: str) -> Iterator[None]:
    """Show what our modules log during a tick in the log of that tick.

    `python_logs` of dagster.yaml reaches runs only: without this, a tick's page shows `context.log` and nothing else.

    Args:
        context: the tick's.
        threads: how the names of the threads begin that work for this tick; other sensors tick at the same time.
    """
    ours = logging.getLogger(__package__)
    handler = _TickHandler(context.log, threads=threads)
    ours.addHandler(handler)
    if not ours.isEnabledFor(logging.INFO):
        ours.setLevel(logging.INFO)  # for good: another tick may rely on it when this one ends
    try:
        yield
    finally:
        ours.removeHandler(handler)


class _TickHandler(logging.Handler):
    def __init__(self, log: logging.Logger, *, threads: str) -> None:
        super().__init__()
        self._log = log
        self._thread = threading.get_ident()
        self._threads = threads

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread or (record.threadName or "").startswith(self._threads):
            self._log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
