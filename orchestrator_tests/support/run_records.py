"""Thousands of Dagster runs at once, written straight into a real instance's storage; and what that is asked."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy
from sqlalchemy import event

from orchestrator_tests.support.dagster_internals import RunsTable, RunTagsTable, SqlRunStorage, serialize_value


def failed_run(job: str, *, partition: str, **attributes: Any) -> dg.DagsterRun:
    """A run that failed; `tags` add to those that each has."""
    tags = {"dagster/partition": partition, **attributes.pop("tags", {})}
    return dg.DagsterRun(
        job_name=job, run_id=str(uuid.uuid4()), status=dg.DagsterRunStatus.FAILURE, tags=tags, **attributes
    )


def insert(instance: dg.DagsterInstance, runs: Sequence[dg.DagsterRun], *, ended: timedelta) -> None:
    """Write finished runs.

    Args:
        instance: Dagster, on a database of SQL.
        runs: with their final status and tags.
        ended: how long ago they ended; they began, and were created, a minute earlier.
    """
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    end = datetime.now(UTC) - ended
    begin = end - timedelta(minutes=1)
    rows = [
        {
            "run_id": run.run_id,
            "pipeline_name": run.job_name,
            "status": run.status.value,
            "run_body": serialize_value(run),
            "partition": run.tags.get("dagster/partition"),
            "create_timestamp": begin.replace(tzinfo=None),
            "update_timestamp": end.replace(tzinfo=None),
            "start_time": begin.timestamp(),
            "end_time": end.timestamp(),
        }
        for run in runs
    ]
    tags = [{"run_id": run.run_id, "key": key, "value": value} for run in runs for key, value in run.tags.items()]
    with storage.connect() as connection:
        connection.execute(RunsTable.insert(), rows)
        connection.execute(RunTagsTable.insert(), tags)


@contextmanager
def statements() -> Iterator[list[str]]:
    """Every statement that any SQL database is sent in this process meanwhile."""
    sent: list[str] = []

    def keep(_connection: object, _cursor: object, statement: str, _parameters: Mapping[str, Any], *_: object) -> None:
        sent.append(statement)

    event.listen(sqlalchemy.Engine, "before_cursor_execute", keep)
    try:
        yield sent
    finally:
        event.remove(sqlalchemy.Engine, "before_cursor_execute", keep)
