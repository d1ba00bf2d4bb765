"""The janitor against any state of the world: it never hurts a live attempt, and it forgets nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import dagster as dg
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.janitor.rules import LATE, Action, CloseRun, EndRun, RetryRun, Terminate, decide
from orchestrator.janitor.snapshot import Snapshot, TrainingRun
from orchestrator.pipeline.training.lease import LEASE
from orchestrator.resources.ec2 import Instance
from orchestrator_tests.support.janitor_world import NOW, ago, build_of, instance, open_run, run, world

IDS = ["run-1", "run-2", "run-3"]
moments = st.integers(-150, 3600).map(lambda seconds: ago(seconds=seconds))
past = st.integers(0, 3600).map(lambda seconds: ago(seconds=seconds))
maybe = st.none() | moments
partitions = st.sampled_from(["7", "8"])
pipelines = st.sampled_from([frozenset({"iris"}), frozenset({"fraud"}), None])


@st.composite
def runs(draw: st.DrawFn, id: str) -> TrainingRun:
    status = draw(st.sampled_from([one.value for one in dg.DagsterRunStatus]))
    waiting = status in ("QUEUED", "NOT_STARTED", "STARTING", "MANAGED")
    return run(
        status,
        id,
        pipelines=draw(pipelines),
        partition=draw(partitions),
        started_at=None if waiting else draw(past),
        ended_at=draw(past) if status in ("SUCCESS", "FAILURE", "CANCELED") else None,
        lease_until=draw(maybe),
        will_retry=draw(st.sampled_from([None, True, False])),
        retry=draw(st.sampled_from([None, *IDS, "run-deleted"])),
        created_at=draw(st.none() | past),
        retry_missed=status == "FAILURE" and draw(st.booleans()),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    owners = st.sampled_from([*IDS, "run-deleted", ""])
    deployments = st.sampled_from(["ours", "theirs"])
    instances = [
        instance(
            draw(owners),
            id=f"i-{number}",
            pipeline=draw(st.sampled_from(["iris", "iris", "churn"])),
            partition=draw(partitions),
            deployment=draw(deployments),
            power_off_at=draw(maybe),
            launched_at=draw(past),
            lease_until=draw(maybe),
            mlflow_run=draw(st.sampled_from(["m-0", "m-1", "m-2", ""])),
            state=draw(st.sampled_from(["pending", "running", "stopping", "stopped"])),
        )
        for number in range(draw(st.integers(0, 4)))
    ]
    opened = [
        open_run(
            draw(owners),
            f"m-{number}",
            partition=draw(partitions),
            deployment=draw(st.sampled_from(["ours", "theirs", ""])),
            started_at=draw(past),
        )
        for number in range(draw(st.integers(0, 3)))
    ]
    there = [draw(runs(id)) for id in IDS if draw(st.booleans())]
    return world(
        *instances,
        *opened,
        *there,
        broken=draw(st.sampled_from([frozenset(), frozenset({"churn"})])),
        watching_since=draw(past),
        instances_known=draw(st.booleans()),
    )


def apply(state: Snapshot, actions: list[Action], now: datetime) -> Snapshot:
    """The world after these actions; Dagster does not retry what the janitor ended."""
    gone = {action.instance.id for action in actions if isinstance(action, Terminate)}
    closed = {action.run.id for action in actions if isinstance(action, CloseRun)}
    ended = {action.run.id: action.status for action in actions if isinstance(action, EndRun)}
    asked = {action.run.id for action in actions if isinstance(action, RetryRun)}
    statuses = {"failed": dg.DagsterRunStatus.FAILURE, "canceled": dg.DagsterRunStatus.CANCELED}
    return replace(
        state,
        instances=tuple(one for one in state.instances if one.id not in gone),
        open_runs=tuple(one for one in state.open_runs if one.id not in closed),
        runs=tuple(
            replace(
                one,
                status=statuses[ended[one.id]] if one.id in ended else one.status,
                ended_at=now if one.id in ended else one.ended_at,
                will_retry=False if one.id in ended else one.will_retry,
                retry_missed=one.retry_missed and one.id not in asked,
            )
            for one in state.runs
        ),
    )


def is_overdue(left: Instance, now: datetime) -> bool:
    return left.power_off_at is not None and left.power_off_at <= now


@given(worlds())
def test_what_a_live_attempt_or_another_deployment_has_is_never_touched(state: Snapshot) -> None:
    unfinished = [one for one in state.runs if not one.finished]
    for action in decide(state, NOW):
        match action:
            case Terminate(instance=one):
                assert one.deployment == "ours"
                if state.is_broken(one.pipeline):
                    assert is_overdue(one, NOW)
                    continue
                if is_overdue(one, NOW - LATE):
                    continue
                assert one.dagster_run not in {live.id for live in unfinished}
                assert not any(live.may_train(build_of(one)) for live in unfinished)
            case CloseRun(run=one):
                assert one.deployment in ("ours", "")
                users = [i for i in state.instances if i.mlflow_run == one.id and i.deployment == "ours"]
                assert not any(
                    live.id in {user.dagster_run for user in users} & {one.dagster_run} for live in unfinished
                )
            case EndRun(run=one):
                if one.status == dg.DagsterRunStatus.NOT_STARTED:
                    continue
                assert one.status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
                assert one.started_at is not None
                assert one.started_at + LEASE <= NOW
                assert one.lease_until is None or one.lease_until <= NOW


@given(worlds())
def test_what_may_still_be_retried_keeps_its_instance_until_its_deadline(state: Snapshot) -> None:
    ids = {one.id for one in state.runs}
    waiting = {
        one.id
        for one in state.runs
        if one.status == dg.DagsterRunStatus.FAILURE
        and one.will_retry
        and one.retry not in ids
        and one.ended_at is not None
        and NOW - one.ended_at < timedelta(minutes=10)
    }
    ended = {
        action.instance.dagster_run
        for action in decide(state, NOW)
        if isinstance(action, Terminate)
        and not state.is_broken(action.instance.pipeline)
        and "it was to end at" not in action.why  # a deadline is final
    }
    assert not ended & waiting


@given(worlds())
def test_nothing_is_done_twice(state: Snapshot) -> None:
    first = decide(state, NOW)
    again = decide(apply(state, first, NOW), NOW)
    assert not set(map(str, first)) & set(map(str, again))
    assert not any(isinstance(action, EndRun) for action in again)


@given(worlds())
@settings(max_examples=60)
def test_as_time_passes_everything_that_no_attempt_can_want_is_ended(state: Snapshot) -> None:
    now = NOW
    for _ in range(15):  # minutes: ten of them for a retry that was announced and never came
        state = apply(state, decide(state, now), now)
        now += timedelta(minutes=1)
    unfinished = [one for one in state.runs if not one.finished]
    for one in state.instances:
        wanted = [live for live in unfinished if live.may_train(build_of(one)) or live.id == one.dagster_run]
        if one.deployment == "ours" and state.is_broken(one.pipeline):
            assert not is_overdue(one, now - timedelta(minutes=1))
        else:
            assert one.deployment == "theirs" or wanted
    assert decide(state, now) == []
    for attempt in unfinished:
        assert attempt.started_at is None or not attempt.ours or attempt.status.value in ("SUSPENDED", "MANAGED")
