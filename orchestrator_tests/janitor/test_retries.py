"""The retries that the janitor has Dagster make: with Dagster's own daemon, before and after."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import names
from orchestrator.dagster_instance import RunRetries, run_retries
from orchestrator.janitor.actions import ActionExecutor
from orchestrator.janitor.clients import Clients
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.retries import FailedRun, Successor, missed_retries
from orchestrator.janitor.rules import Action, EndRun, RetryRun, decide
from orchestrator.janitor.snapshot import Snapshot
from orchestrator_tests.support.dagster_internals import (
    EmptyWorkspaceTarget,
    EventLogConsumerDaemon,
    ModuleTarget,
    RunFailureReason,
    WorkspaceProcessContext,
    auto_reexecution_should_retry_run,
    create_test_daemon_workspace_context,
)
from orchestrator_tests.support.janitor_world import NOW, ago
from orchestrator_tests.support.run_records import failed_run

BUILDS = dg.DynamicPartitionsDefinition(name="iris_builds")
JOB = "iris_training"
NO_STEPS = {"enabled": True, "retry_on_asset_or_op_failure": False}


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
        "run_retries": {"max_retries": 2, **NO_STEPS},
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
    seen = Snapshot(deployments=frozenset({"ours"}), watching_since=now - timedelta(hours=1))

    def still_right(action: Action) -> bool:
        assert isinstance(action, EndRun | RetryRun)
        return action in decide(replace(seen, runs=runs.read_run(action.run.id)), now)

    executor = ActionExecutor(Clients([]), instance, still_right=still_right)
    actions = decide(replace(seen, runs=runs.read(frozenset(), frozenset())), now)
    results = executor.run(actions, until=time.monotonic() + 60)
    return [f"{type(result.action).__name__} {result.summary}" for result in results]


@pytest.mark.services
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


@pytest.mark.services
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


@pytest.mark.services
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
        assert retry.tags[names.DagsterTag.PRIORITY] == "1"


# ---- The rule, and Dagster's own


@dataclass
class Facts:
    """What a database holds, as `RetryFacts`."""

    sizes: Mapping[str, int] = field(default_factory=lambda: {"run-1": 1})
    going_on: frozenset[str] = frozenset()
    since: tuple[Successor, ...] = ()

    def group_sizes(self, roots: Collection[str]) -> Mapping[str, int]:
        return {root: self.sizes[root] for root in roots if root in self.sizes}

    def unfinished_backfills(self, ids: Collection[str]) -> frozenset[str]:
        return self.going_on & frozenset(ids)

    def successors(self, partitions: Collection[str], *, since: datetime) -> list[Successor]:
        return [one for one in self.since if one.partition in partitions and one.created_at > since]


RETRIES = RunRetries(most=2, after_step_failure=False)
NO_FACTS = Facts()


def failure(*, seconds_ago: float = 61, **tags: str) -> FailedRun:
    return FailedRun(
        id="run-1",
        root="run-1",
        partition="7",
        pipelines=frozenset({"iris"}),
        created_at=ago(minutes=30),
        ended_at=ago(seconds=seconds_ago),
        tags={name.replace("__", "/"): value for name, value in tags.items()},
    )


def is_missed(run: FailedRun, facts: Facts = NO_FACTS) -> bool:
    return bool(missed_retries([run], facts, retries=RETRIES, now=NOW))


def test_dagster_has_its_minute_unless_it_gave_up() -> None:
    assert is_missed(failure())
    assert not is_missed(failure(seconds_ago=59))
    assert not is_missed(failure(seconds_ago=59, dagster__will_retry="true"))
    assert is_missed(failure(seconds_ago=59, dagster__will_retry="false"))


@pytest.mark.parametrize(("asked", "missed"), [("9", True), ("10", False), ("soon", False)])
def test_it_is_not_asked_for_ever(asked: str, missed: bool) -> None:
    run = failure()
    assert is_missed(replace(run, tags={"orchestrator/retries-asked": asked})) is missed


def test_a_run_of_a_backfill_is_retried_while_that_goes_on() -> None:
    run = failure(dagster__backfill="b-1")
    assert not is_missed(run)
    assert is_missed(run, Facts(going_on=frozenset({"b-1"})))


def test_a_run_whose_first_try_was_deleted_is_not_retried() -> None:
    assert not is_missed(failure(), Facts(sizes={}))


@pytest.mark.parametrize(
    ("other", "missed"),
    [
        ({}, False),
        ({"pipelines": None}, False),
        ({"pipelines": frozenset({"fraud"})}, True),
        ({"partition": "8"}, True),
        ({"id": "run-1"}, True),
        ({"created_at": ago(minutes=31)}, True),
    ],
)
def test_a_run_launched_since_for_what_may_be_the_same_build_is_instead(other: dict[str, Any], missed: bool) -> None:
    successor = Successor(id="run-2", partition="7", pipelines=frozenset({"iris"}), created_at=ago(minutes=1))
    assert is_missed(failure(), Facts(since=(replace(successor, **other),))) is missed


def test_the_facts_about_all_failures_are_asked_for_at_once() -> None:
    asked: list[str] = []

    class Counted(Facts):
        def group_sizes(self, roots: Collection[str]) -> Mapping[str, int]:
            asked.append("group sizes")
            return dict.fromkeys(roots, 1)

        def unfinished_backfills(self, ids: Collection[str]) -> frozenset[str]:
            asked.append("backfills")
            return frozenset(ids)

        def successors(self, partitions: Collection[str], *, since: datetime) -> list[Successor]:
            asked.append("successors")
            return []

    runs = [replace(failure(dagster__backfill="b-1"), id=f"run-{n}", root=f"run-{n}") for n in range(1000)]
    assert len(missed_retries(runs, Counted(), retries=RETRIES, now=NOW)) == 1000
    assert asked == ["group sizes", "backfills", "successors"]


@pytest.mark.services
@given(
    tags=st.fixed_dictionaries(
        {},
        optional={
            "dagster/max_retries": st.sampled_from(["0", "1", "2", "5", "many", "-1"]),
            "dagster/retry_on_asset_or_op_failure": st.sampled_from(["true", "false", "False", "0", "none", "", "yes"]),
            "dagster/failure_reason": st.sampled_from(["STEP_FAILURE", "RUN_EXCEPTION", "UNKNOWN"]),
        },
    ),
    tries=st.integers(1, 4),
    root_deleted=st.booleans(),
)
@settings(max_examples=40, deadline=None)  # a database of its own each
def test_the_rule_says_what_dagsters_own_function_says(tags: dict[str, str], tries: int, root_deleted: bool) -> None:
    with dg.DagsterInstance.ephemeral(settings={"run_retries": {"max_retries": 2, **NO_STEPS}}) as instance:
        first = failed_run(JOB, partition="7", tags=tags)
        root = {"dagster/root_run_id": first.run_id}
        again = [
            failed_run(JOB, partition="7", root_run_id=first.run_id, parent_run_id=first.run_id, tags={**tags, **root})
            for _ in range(tries - 1)
        ]
        for run in (first, *again):
            instance.add_run(run)
        if root_deleted and again:
            instance.delete_run(first.run_id)
        last = [first, *again][-1]
        reason = tags.get("dagster/failure_reason")
        with warnings.catch_warnings(action="ignore"):
            theirs = auto_reexecution_should_retry_run(instance, last, RunFailureReason(reason) if reason else None)
        runs = DagsterRuns(instance, definitions.get_repository_def(), pipelines=["iris"])
        ours = missed_retries(
            [
                FailedRun(
                    id=last.run_id,
                    root=last.root_run_id or last.run_id,
                    partition="7",
                    pipelines=frozenset({"iris"}),
                    created_at=datetime.now(UTC) + timedelta(hours=1),  # nothing has been launched since
                    ended_at=NOW,
                    tags=last.tags,
                )
            ],
            runs,
            retries=run_retries(instance),
            now=NOW + timedelta(hours=1),
        )
        assert bool(ours) is theirs
