"""What dagster.yaml names: one setting decides where Dagster keeps its runs, and nothing else needs to be changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.storage.base_storage import DagsterStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from orchestrator.storage.address import postgres_address
from orchestrator.storage.engine import shared_engine


class Storage(DagsterStorage[dg.DagsterInstance], ConfigurableClass):
    """PostgreSQL where DAGSTER_POSTGRES_URL is set, else SQLite in DAGSTER_HOME."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Nothing: the setting says all."""
        return {}

    @classmethod
    def from_config_value(  # type: ignore[override]  # Dagster wants any storage
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> DagsterStorage[dg.DagsterInstance]:
        """The storage that is set.

        Raises:
            SettingsError: DAGSTER_POSTGRES_URL cannot be used; says why, and what to do.
        """
        address = postgres_address()
        if address is None:
            from orchestrator.storage.sqlite import SqliteStorage

            return SqliteStorage()
        shared_engine(address)  # says what to install, if that is missing
        from orchestrator.storage.postgres import PostgresStorage

        return PostgresStorage(address)
