"""What we ask of a Dagster instance and Dagster does not promise: the only file that may break with its next version.

A method without `@public`, or a name out of `dagster._…`, is used in this file and nowhere else.
`orchestrator_tests/test_dagster_instance.py` compares each of them with the Dagster that is installed.
"""

from __future__ import annotations

import dagster as dg

from orchestrator.errors import SettingsError


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
