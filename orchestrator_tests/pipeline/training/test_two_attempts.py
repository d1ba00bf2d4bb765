"""Two runs for one build that begin at the same moment: one gets an instance, the other gives way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import boto3
import dagster as dg
import pytest

from orchestrator.errors import BuildBusy
from orchestrator.pipeline.training.run_history import RunHistory
from orchestrator_tests.support.attempts import World
from orchestrator_tests.support.instances import new_instance

ASSET = dg.AssetKey(["tiny", "trained_model"])


@pytest.fixture
def dagster() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


def begun(dagster: dg.DagsterInstance, partition: str) -> RunHistory:
    """A run of the pipeline's job that Dagster has just started, as one of its steps sees it."""

    @dg.job(name="tiny_training")
    def job() -> None:
        pass

    run = dagster.create_run_for_job(job, tags={"dagster/partition": partition})
    start = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_START.value, job_name=run.job_name)
    dagster.report_dagster_event(start, run.run_id)
    seen = SimpleNamespace(
        instance=dagster, assets_def=SimpleNamespace(key=ASSET), partition_key=partition, run_id=run.run_id, run=run
    )
    return RunHistory(cast(Any, seen))


def test_of_two_attempts_that_begin_at_the_same_moment_one_gets_an_instance_and_the_other_says_who(
    world: World, dagster: dg.DagsterInstance
) -> None:
    runs = [begun(dagster, "501"), begun(dagster, "501")]
    attempts = [world.attempt(501, run=cast(Any, run)) for run in runs]
    together = threading.Barrier(2)

    def provision(index: int) -> str | BuildBusy:
        together.wait()
        try:
            instance = attempts[index].provision()
        except BuildBusy as busy:
            return busy
        assert instance is not None
        return instance.dagster_run

    with ThreadPoolExecutor() as threads:
        first, second = threads.map(provision, [0, 1])
    assert first == runs[0].run_id, "the run that Dagster started first trains"
    assert isinstance(second, BuildBusy)
    assert f"is being trained by run {first}" in str(second)
    ours = [{"Name": "tag:orchestrator:partition", "Values": ["501"]}]
    launched = boto3.client("ec2").describe_instances(Filters=cast(Any, ours))["Reservations"]
    assert sum(len(group["Instances"]) for group in launched) == 1
    for attempt in attempts:
        attempt.close()
    assert world.ec2.find(pipeline="tiny", partition="501") is None
