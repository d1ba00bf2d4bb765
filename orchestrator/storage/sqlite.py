"""Dagster's default storages, in the folder of the instance that they come to belong to.

Dagster tells a storage that dagster.yaml names nothing of that folder, and a temporary one is named nowhere else.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs.sqlite.sqlite_run_storage import SqliteRunStorage
from dagster._core.storage.schedules.sqlite.sqlite_schedule_storage import SqliteScheduleStorage

RUNS, EVENTS, SCHEDULES = "history", "history/runs", "schedules"
"""Where Dagster has them: a DAGSTER_HOME of before is opened as it is."""


class SqliteRuns(SqliteRunStorage):
    """Dagster's runs."""

    def __init__(self) -> None:
        self._inst_data = None

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Open the database of this instance."""
        self.__dict__.update(SqliteRunStorage.from_local(_folder(instance, RUNS)).__dict__)
        super().register_instance(instance)


class SqliteEvents(SqliteEventLogStorage):
    """Dagster's events."""

    def __init__(self) -> None:
        self._inst_data = None

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Open the databases of this instance."""
        self.__dict__.update(SqliteEventLogStorage(_folder(instance, EVENTS)).__dict__)
        super().register_instance(instance)


class SqliteSchedules(SqliteScheduleStorage):
    """Dagster's schedules, sensors and ticks."""

    def __init__(self) -> None:
        self._inst_data = None

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Open the database of this instance."""
        self.__dict__.update(SqliteScheduleStorage.from_local(_folder(instance, SCHEDULES)).__dict__)
        super().register_instance(instance)


def _folder(instance: dg.DagsterInstance, name: str) -> str:
    return str(Path(instance.root_directory, name))


class SqliteStorage(DagsterStorage[dg.DagsterInstance]):
    """All three of one instance."""

    def __init__(self) -> None:
        self._runs = SqliteRuns()
        self._events = SqliteEvents()
        self._schedules = SqliteSchedules()

    @property
    def run_storage(self) -> SqliteRuns:
        """Dagster's runs."""
        return self._runs

    @property
    def event_log_storage(self) -> SqliteEvents:
        """Dagster's events."""
        return self._events

    @property
    def schedule_storage(self) -> SqliteSchedules:
        """Dagster's schedules, sensors and ticks."""
        return self._schedules
