"""Dagster's tables brought to what the Dagster that is installed wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.operate.home import prepare_home, private_files
from orchestrator.storage.address import postgres_address
from orchestrator.storage.lease import require_free
from orchestrator.storage.migration import Schema, require_current, schema_of


def migrate(home: Path, *, say: Callable[[str], None]) -> None:
    """Migrate, if that is needed.

    Args:
        home: the DAGSTER_HOME.
        say: takes each line for the user.

    Raises:
        SettingsError: a `serve` runs, the tables are of a newer Dagster, or the database cannot be used.
    """
    where = postgres_address() or home
    schema = schema_of(home)
    if schema in (Schema.NONE, Schema.CURRENT):
        reason = "there are no tables yet, and the first start makes them" if schema is Schema.NONE else schema.value
        say(f"Nothing to migrate in {where}: {reason}")
        return
    if schema is Schema.FOREIGN:
        require_current(home)
    require_free(home, "migrate")
    import dagster as dg  # only here, because it takes a second

    with private_files():
        prepare_home(home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            from orchestrator import dagster_instance

            dagster_instance.migrate(instance, say=say)
    if schema_of(home) is not Schema.CURRENT:
        raise SettingsError(f"the tables in {where} are still not current; restore the backup, and report this")
    say(f"Migrated {where}")
