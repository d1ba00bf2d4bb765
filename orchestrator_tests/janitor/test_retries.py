"""The retries that the janitor has Dagster make: with Dagster's own daemon, before and after."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from orchestrator.janitor.actions import Hands
from orchestrator.janitor.clients import Sight, Systems
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.rules import EndRun, RetryRun, decide
from orchestrator.janitor.snapshot import World
from orchestrator.names import DagsterTag
from orchestrator_tests.support.dagster_internals import (
    EmptyWorkspaceTarget,
    EventLogConsumerDaemon,
    ModuleTarget,
    WorkspaceProcessContext,
    create_test_daemon_workspace_context,
)

BUILDS = dg.DynamicPartitionsDefinition(name="iris_builds")
JOB = "iris_training"


@dg.asset(key=["iris", "trained_model"], partitions_def=BUILDS)
def trained_model() -> None: ...


definitions = dg.Definitions(assets=[trained_model], jobs=[dg.define_asset_job(JOB, selection=[trained_model])])


@contextmanager
def with_code_server(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    target = ModuleTarget(__name__, attribute="definitions", working_directory=None, location_name="code")
    with create_test_daemon_workspace_context(target, instance) as workspace:
        yield workspace


@contextmanager
def without_code_server(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    with create_test_daemon_workspace_context(EmptyWorkspaceTarget(), instance) as workspace:
        yield workspace


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    overrides = {
        "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"},
    }
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as made:
        yield made


def new_run(workspace: WorkspaceProcessContext) -> dg.DagsterRun:
    repository = workspace.create_request_context().get_code_location("code").get_repository("__repository__")
    return dg.DagsterRun(
        job_name=JOB,
        run_id=str(uuid.uuid4()),
        tags={"dagster/partition": "7", "dagster/retry_strategy": "ALL_STEPS"},
        remote_job_origin=repository.get_full_job(JOB).get_remote_origin(),
    )


def run_whose_worker_died(instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> str:
    run = new_run(workspace)
    instance.add_run(run)
    instance.report_run_failed(run, "its worker is gone")
    return run.run_id


def run_whose_worker_was_killed(instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> str:
    run = new_run(workspace)
    instance.add_run(run)
    started = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, JOB, message="")
    instance.run_storage.handle_run_event(run.run_id, started, datetime.now(UTC) - timedelta(hours=1))
    return run.run_id


def missed_failure(instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> str:
    """A failure that the daemon reads between its event and the run's new status, which Dagster writes in turn."""
    run = new_run(workspace)
    instance.add_run(run)
    two_minutes_ago = datetime.now(UTC) - timedelta(minutes=2)
    failure = dg.DagsterEvent(dg.DagsterEventType.RUN_FAILURE.value, JOB, message="its worker is gone")
    instance.event_log_storage.store_event(
        dg.EventLogEntry(  # type: ignore[no-untyped-call]
            error_info=None,
            level="error",
            user_message="",
            run_id=run.run_id,
            timestamp=two_minutes_ago.timestamp(),
            job_name=JOB,
            dagster_event=failure,
        )
    )
    list(EventLogConsumerDaemon().run_iteration(workspace))
    instance.run_storage.handle_run_event(run.run_id, failure, two_minutes_ago)
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    return run.run_id


def retries(instance: dg.DagsterInstance, run: str) -> list[dg.DagsterRunStatus]:
    return [one.status for one in instance.get_runs() if one.parent_run_id == run]


def janitors_tick(instance: dg.DagsterInstance) -> list[str]:
    """What the janitor does about Dagster's runs alone, there being no instance and no MLflow run."""
    runs = DagsterRuns(instance, definitions.get_repository_def(), pipelines=["iris"], location="code")
    now = datetime.now(UTC)

    def world() -> World:
        return World(
            deployments=frozenset({"ours"}),
            instances=(),
            instances_known=True,
            open_runs=(),
            runs=runs.read(Sight()),
            watching_since=now - timedelta(hours=1),
        )

    hands = Hands(
        Systems([]),
        instance,
        logging.getLogger(__name__),
        still_right=lambda action: action in decide(world(), now),
        until=time.monotonic() + 60,
    )
    return [f"{type(done.action).__name__} {done.said}" for done in hands.perform(decide(world(), now))]


def test_a_retry_that_dagster_gave_up_while_its_code_server_was_away_is_made_after_all(
    instance: dg.DagsterInstance,
) -> None:
    daemon = EventLogConsumerDaemon()
    with ExitStack() as exits:
        workspace = exits.enter_context(with_code_server(instance))
        list(daemon.run_iteration(workspace))  # notes where the event log begins for it
        run = run_whose_worker_died(instance, workspace)
        list(daemon.run_iteration(exits.enter_context(without_code_server(instance))))
        list(daemon.run_iteration(workspace))
        assert retries(instance, run) == []  # it has really given up

        assert janitors_tick(instance) == [f"{RetryRun.__name__} done"]
        list(daemon.run_iteration(workspace))
        assert retries(instance, run) == [dg.DagsterRunStatus.QUEUED]
        list(daemon.run_iteration(workspace))
        assert janitors_tick(instance) == []
        assert len(retries(instance, run)) == 1


def test_a_failure_that_dagster_missed_is_retried_after_all(instance: dg.DagsterInstance) -> None:
    daemon = EventLogConsumerDaemon()
    with with_code_server(instance) as workspace:
        list(daemon.run_iteration(workspace))
        run = missed_failure(instance, workspace)
        list(daemon.run_iteration(workspace))
        assert retries(instance, run) == []  # it has really been missed

        assert janitors_tick(instance) == [f"{RetryRun.__name__} done"]
        list(daemon.run_iteration(workspace))
        assert retries(instance, run) == [dg.DagsterRunStatus.QUEUED]
        assert janitors_tick(instance) == []


def test_the_retry_of_a_run_that_the_janitor_ended_does_not_queue_behind_a_backfill(
    instance: dg.DagsterInstance,
) -> None:
    daemon = EventLogConsumerDaemon()
    with with_code_server(instance) as workspace:
        list(daemon.run_iteration(workspace))
        run = run_whose_worker_was_killed(instance, workspace)
        assert janitors_tick(instance) == [f"{EndRun.__name__} done"]
        list(daemon.run_iteration(workspace))
        (retry,) = [one for one in instance.get_runs() if one.parent_run_id == run]
        assert retry.tags[DagsterTag.PRIORITY] == "1"
