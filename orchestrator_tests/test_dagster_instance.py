"""What we use of Dagster without its promise does what we use it for."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from orchestrator import dagster_instance, names
from orchestrator.errors import SettingsError


@pytest.fixture
def dagster() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def pool_limits(dagster: dg.DagsterInstance) -> dict[str, int]:
    return {pool.name: pool.limit for pool in dagster.event_log_storage.get_pool_limits()}


def test_a_pool_takes_a_limit_and_a_new_one(dagster: dg.DagsterInstance) -> None:
    dagster_instance.set_pool_limit(dagster, pool=names.INSTANCE_POOL, limit=3)
    assert pool_limits(dagster) == {names.INSTANCE_POOL: 3}
    dagster_instance.set_pool_limit(dagster, pool=names.INSTANCE_POOL, limit=1)
    assert pool_limits(dagster) == {names.INSTANCE_POOL: 1}


def test_a_storage_that_keeps_no_limits_is_named() -> None:
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(SettingsError, match="InMemoryEventLogStorage"):
        dagster_instance.set_pool_limit(instance, pool=names.INSTANCE_POOL, limit=3)
