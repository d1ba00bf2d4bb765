"""A Dagster instance, and a build that it knows of."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from orchestrator.pipeline.builds import partition_key
from orchestrator.resources.jenkins.answers import Build
from orchestrator_tests.support.attempts import World
from orchestrator_tests.support.recorded_builds import record_build


@pytest.fixture
def dagster() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def recorded(world: World, dagster: dg.DagsterInstance) -> Build:
    """A build that Jenkins has deleted and the sensor has recorded; nobody answers as Jenkins here."""
    build = world.build(40)
    dagster.add_dynamic_partitions("churn_builds", [partition_key(build, build.job)])
    record_build(dagster, build)
    return build
