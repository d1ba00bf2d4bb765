"""The janitor's rules, one by one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.janitor.rules import Action, CloseRun, EndRun, RetryRun, Terminate, decide
from orchestrator.janitor.snapshot import TrainingRun
from orchestrator.pipeline.training.lease import LEASE
from orchestrator_tests.support.janitor_world import NOW, ago, instance, open_run, run, world

LEASED = ago(seconds=-100)


def orders(actions: list[Action]) -> list[str]:
    return [str(action) for action in actions]


TERMINATE = ["terminate instance i-1 (iris 7)"]


# ---- instances


@pytest.mark.parametrize("status", ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING", "SUSPENDED"])
def test_an_instance_with_a_live_attempt_is_kept(status: str) -> None:
    assert decide(world(instance(), run(status, lease_until=LEASED)), NOW) == []


@pytest.mark.parametrize("status", ["SUCCESS", "CANCELED"])
@pytest.mark.parametrize("state", ["pending", "running", "stopping", "stopped"])
def test_an_instance_whose_run_is_over_is_terminated(status: str, state: str) -> None:
    (action,) = decide(world(instance(state=state), run(status)), NOW)
    assert isinstance(action, Terminate)
    assert f"ended as {status}" in action.why


def test_another_deployments_instance_is_never_touched() -> None:
    assert decide(world(instance(deployment="theirs"), run("CANCELED")), NOW) == []


def test_an_instance_that_a_run_by_hand_may_adopt_is_kept() -> None:
    assert decide(world(instance(), run("CANCELED"), run("QUEUED", "run-2")), NOW) == []


def test_a_run_of_a_job_that_nobody_knows_may_adopt_it_too() -> None:
    assert decide(world(instance(), run("CANCELED"), run("QUEUED", "run-2", pipelines=None)), NOW) == []


@pytest.mark.parametrize("more", [{"partition": "8"}, {"pipelines": frozenset({"fraud"})}])
def test_a_run_of_another_build_adopts_nothing(more: dict[str, object]) -> None:
    assert orders(decide(world(instance(), run("CANCELED"), run("QUEUED", "run-2", **more)), NOW)) == TERMINATE


def test_an_instance_awaits_the_retry_that_dagster_has_announced() -> None:
    failed = run("FAILURE", will_retry=True, ended_at=ago(minutes=9))
    assert decide(world(instance(), failed), NOW) == []


def test_a_retry_that_never_comes_is_not_awaited_for_ever() -> None:
    failed = run("FAILURE", will_retry=True, ended_at=ago(minutes=11))
    assert orders(decide(world(instance(), failed), NOW)) == TERMINATE


def test_the_time_while_nobody_was_watching_does_not_count() -> None:
    failed = run("FAILURE", will_retry=True, ended_at=ago(minutes=90))
    assert decide(world(instance(), failed, watching_since=ago(minutes=1)), NOW) == []


def test_dagster_gets_a_moment_to_decide_whether_it_retries() -> None:
    assert decide(world(instance(), run("FAILURE", ended_at=ago(seconds=30))), NOW) == []
    assert orders(decide(world(instance(), run("FAILURE", ended_at=ago(seconds=61))), NOW)) == TERMINATE


def test_a_failure_that_is_not_retried_frees_the_instance_at_once() -> None:
    assert orders(decide(world(instance(), run("FAILURE", will_retry=False, ended_at=NOW)), NOW)) == TERMINATE


def test_an_instance_is_kept_through_a_chain_of_retries() -> None:
    first = run("FAILURE", will_retry=True, retry="run-2", ended_at=ago(minutes=40))
    second = run("FAILURE", "run-2", will_retry=True, ended_at=ago(minutes=1))
    assert decide(world(instance(), first, second), NOW) == []


def test_an_instance_is_freed_when_the_last_retry_is_over() -> None:
    first = run("FAILURE", will_retry=True, retry="run-2", ended_at=ago(minutes=1))
    second = run("FAILURE", "run-2", will_retry=False, ended_at=ago(seconds=1))
    assert orders(decide(world(instance(), first, second), NOW)) == TERMINATE


def test_an_instance_of_a_run_that_dagster_lost_is_kept_until_its_lease_ends() -> None:
    assert decide(world(instance(lease_until=LEASED)), NOW) == []
    assert orders(decide(world(instance(lease_until=ago(seconds=1))), NOW)) == TERMINATE


def test_a_new_instance_of_an_unknown_run_is_left_to_the_next_tick() -> None:
    assert decide(world(instance(launched_at=ago(seconds=90))), NOW) == []
    assert orders(decide(world(instance(launched_at=ago(minutes=3))), NOW)) == TERMINATE


def test_an_instance_that_names_no_run_is_terminated() -> None:
    (action,) = decide(world(instance("")), NOW)
    assert "it names none" in action.why


# ---- a pipeline whose defs.yaml cannot be read


@pytest.mark.parametrize("owner", [run("CANCELED"), run("FAILURE", will_retry=False), run("STARTED"), None])
@pytest.mark.parametrize("pipeline", ["churn", "named otherwise in its defs.yaml"])
def test_an_instance_of_a_broken_pipeline_is_left_alone_until_its_deadline(
    pipeline: str, owner: TrainingRun | None
) -> None:
    runs = [replace(owner, pipelines=frozenset({"churn"}), lease_until=LEASED)] if owner else []
    left = instance(pipeline=pipeline, power_off_at=ago(seconds=-1))
    broken = world(left, *runs, broken=frozenset({"churn"}))
    assert decide(broken, NOW) == []
    (action,) = decide(broken, NOW + timedelta(seconds=1))
    assert isinstance(action, Terminate)
    assert f"the defs.yaml of pipeline {pipeline} cannot be read" in action.why


def test_one_without_a_deadline_is_left_alone_for_good() -> None:
    assert decide(world(instance(pipeline="churn"), run("CANCELED"), broken=frozenset({"churn"})), NOW) == []


def test_another_deployments_is_not_touched_past_its_deadline_either() -> None:
    theirs = instance(deployment="theirs", pipeline="churn", power_off_at=ago(minutes=1))
    assert decide(world(theirs, broken=frozenset({"churn"})), NOW) == []


def test_the_instances_of_other_pipelines_are_ended_as_ever() -> None:
    assert orders(decide(world(instance(), run("CANCELED"), broken=frozenset({"churn"})), NOW)) == TERMINATE


def test_a_missed_retry_of_a_broken_pipeline_is_not_asked_for() -> None:
    failed = run("FAILURE", pipelines=frozenset({"churn"}), retry_missed=True, lease_until=ago(minutes=5))
    assert decide(world(failed, broken=frozenset({"churn"})), NOW) == []
    assert len(decide(world(replace(failed, pipelines=frozenset({"iris"})), broken=frozenset({"churn"})), NOW)) == 1


# ---- Dagster runs


def ended(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.run.id, action.status) for action in actions if isinstance(action, EndRun)]


@pytest.mark.parametrize(("status", "becomes"), [("STARTED", "failed"), ("CANCELING", "canceled")])
def test_a_run_whose_lease_has_expired_is_ended_and_its_instance_kept_for_the_retry(status: str, becomes: str) -> None:
    actions = decide(world(instance(), run(status, lease_until=ago(seconds=1))), NOW)
    assert ended(actions) == [("run-1", becomes)]
    assert len(actions) == 1


def test_a_run_that_died_before_its_first_lease_is_ended_too() -> None:
    lease = LEASE.total_seconds()
    assert decide(world(run("STARTED", started_at=ago(seconds=lease - 1))), NOW) == []
    assert ended(decide(world(run("STARTED", started_at=ago(seconds=lease))), NOW)) == [("run-1", "failed")]


def test_a_retry_does_not_die_of_the_lease_that_it_inherited() -> None:
    starting = run("STARTING", started_at=None, lease_until=ago(minutes=5))
    begun = run("STARTED", started_at=ago(seconds=10), lease_until=ago(minutes=5))
    assert decide(world(starting), NOW) == []
    assert decide(world(begun), NOW) == []


def test_the_lease_on_the_instance_counts_as_well() -> None:
    assert decide(world(instance(lease_until=LEASED), run("STARTED", lease_until=ago(seconds=1))), NOW) == []


def test_a_lease_is_not_believed_expired_right_after_a_gap() -> None:
    dead = run("STARTED", lease_until=ago(minutes=20))
    assert decide(world(dead, watching_since=ago(seconds=10)), NOW) == []
    assert ended(decide(world(dead, watching_since=ago(seconds=60)), NOW)) == [("run-1", "failed")]


def test_a_lease_that_may_have_ended_because_its_worker_was_asleep_is_looked_at_once_more() -> None:
    asleep = run("STARTED", lease_until=ago(seconds=30))
    assert decide(world(asleep, looked_before=ago(seconds=125)), NOW) == []
    assert ended(decide(world(asleep, looked_before=NOW), NOW + timedelta(minutes=1))) == [("run-1", "failed")]


def test_so_is_that_of_an_instance_whose_run_dagster_does_not_know() -> None:
    asleep = instance(lease_until=ago(seconds=30))
    assert decide(world(asleep, looked_before=ago(seconds=125)), NOW) == []
    assert orders(decide(world(asleep, looked_before=NOW), NOW + timedelta(minutes=1))) == TERMINATE


def test_a_lease_that_was_not_renewed_before_the_last_look_either_is_not_explained_by_a_sleep() -> None:
    dead = run("STARTED", lease_until=ago(seconds=61))
    assert ended(decide(world(dead, looked_before=ago(seconds=125)), NOW)) == [("run-1", "failed")]


def test_a_run_that_was_created_and_never_queued_is_ended() -> None:
    forgotten = run("NOT_STARTED", started_at=None, created_at=ago(minutes=5))
    assert ended(decide(world(forgotten), NOW)) == [("run-1", "failed")]
    assert decide(world(run("NOT_STARTED", started_at=None, created_at=ago(minutes=4))), NOW) == []
    assert decide(world(forgotten, watching_since=ago(minutes=4)), NOW) == []
    assert decide(world(run("QUEUED", started_at=None, created_at=ago(minutes=500))), NOW) == []


def test_a_retry_that_dagster_could_not_launch_is_asked_for_once_more_and_its_instance_kept() -> None:
    failed = run("FAILURE", will_retry=False, retry_missed=True, ended_at=ago(minutes=1))
    (action,) = decide(world(instance(), open_run(), failed), NOW)
    assert isinstance(action, RetryRun)
    assert action.run == failed


@pytest.mark.parametrize("will_retry", [None, True])
def test_so_is_one_whose_failure_dagster_has_missed(will_retry: bool | None) -> None:
    failed = run("FAILURE", will_retry=will_retry, retry_missed=True, ended_at=ago(minutes=20))
    (action,) = decide(world(instance(), open_run(), failed), NOW)
    assert isinstance(action, RetryRun)


def test_a_failed_run_of_something_else_is_not_retried() -> None:
    assert decide(world(run("FAILURE", pipelines=frozenset(), retry_missed=True, will_retry=False)), NOW) == []


def test_a_run_of_another_code_location_is_neither_ended_nor_retried_unless_it_has_a_lease() -> None:
    assert decide(world(run("STARTED", foreign=True)), NOW) == []
    assert decide(world(run("FAILURE", foreign=True, retry_missed=True, will_retry=False)), NOW) == []
    assert ended(decide(world(run("STARTED", foreign=True, lease_until=ago(seconds=1))), NOW)) == [("run-1", "failed")]


def test_a_run_of_another_code_location_may_adopt_an_instance() -> None:
    assert decide(world(instance(), run("CANCELED"), run("QUEUED", "run-2", foreign=True)), NOW) == []


def test_a_run_that_may_not_train_is_left_alone() -> None:
    assert decide(world(run("STARTED", pipelines=None)), NOW) == []
    assert decide(world(run("STARTED", pipelines=frozenset())), NOW) == []


# ---- MLflow runs


def closed(actions: list[Action]) -> list[tuple[str, str]]:
    return [(action.run.id, action.status) for action in actions if isinstance(action, CloseRun)]


@pytest.mark.parametrize(("status", "becomes"), [("CANCELED", "KILLED"), ("FAILURE", "FAILED"), ("SUCCESS", "FAILED")])
def test_an_open_mlflow_run_is_closed_as_its_dagster_run_ended(status: str, becomes: str) -> None:
    assert closed(decide(world(open_run(), run(status)), NOW)) == [("m-1", becomes)]


def test_an_open_mlflow_run_is_kept_for_a_live_attempt_or_a_retry() -> None:
    assert decide(world(open_run(), run("STARTED", lease_until=LEASED)), NOW) == []
    assert decide(world(open_run(), run("CANCELED"), run("QUEUED", "run-2")), NOW) == []
    assert decide(world(open_run(), run("FAILURE", will_retry=True, ended_at=NOW)), NOW) == []


def test_an_mlflow_run_of_an_unknown_dagster_run_is_closed_after_a_grace() -> None:
    assert decide(world(open_run(started_at=ago(minutes=9))), NOW) == []
    assert closed(decide(world(open_run(started_at=ago(minutes=10))), NOW)) == [("m-1", "FAILED")]


def test_an_mlflow_run_of_an_unknown_dagster_run_is_kept_while_an_instance_may_fill_it() -> None:
    assert decide(world(open_run(), instance(lease_until=LEASED)), NOW) == []
    assert decide(world(open_run(), instances_known=False), NOW) == []


@pytest.mark.parametrize("deployment", ["", "theirs"])
def test_an_mlflow_run_that_another_installation_may_have_made_is_kept(deployment: str) -> None:
    assert decide(world(open_run(deployment=deployment)), NOW) == []


def test_another_deployments_mlflow_run_is_never_touched() -> None:
    assert decide(world(open_run(deployment="theirs"), run("CANCELED")), NOW) == []


def test_of_several_open_runs_of_one_build_only_the_one_in_use_stays() -> None:
    live = run("STARTED", lease_until=LEASED)
    older, used = open_run(id="m-0", started_at=ago(minutes=31)), open_run()
    assert closed(decide(world(live, instance(), older, used), NOW)) == [("m-0", "FAILED")]
    assert decide(world(live, older, used), NOW) == []  # no instance says yet which one is used


def test_a_run_that_an_attempt_has_just_opened_is_not_taken_for_a_left_over_one() -> None:
    live = run("STARTED", lease_until=LEASED)
    assert decide(world(live, instance(), open_run(), open_run(id="m-2", started_at=ago(seconds=5))), NOW) == []


# ---- MLflow runs that a training made besides its own


def test_runs_that_a_training_made_are_closed_by_the_same_rules_as_its_own() -> None:
    trials = [open_run(id=id, training="m-1") for id in ("m-2", "m-3")]
    live = run("STARTED", lease_until=LEASED)
    assert decide(world(live, instance(), open_run(), *trials), NOW) == []
    assert decide(world(live, instance(), *trials), NOW) == [], "the script ended the run that it was given"
    for status, becomes in (("CANCELED", "KILLED"), ("FAILURE", "FAILED")):
        over = run(status, will_retry=False, ended_at=NOW)
        assert closed(decide(world(over, *trials), NOW)) == [("m-2", becomes), ("m-3", becomes)]


def test_a_run_of_a_training_that_was_adopted_is_kept_for_the_attempt_that_has_it_now() -> None:
    dead, adopter = run("FAILURE", will_retry=True), run("STARTED", "run-2", lease_until=LEASED)
    seen = world(dead, adopter, instance("run-2"), open_run("run-2"), open_run("run-1", id="m-2", training="m-1"))
    assert decide(seen, NOW) == []


def test_a_run_of_a_training_that_was_begun_anew_is_closed() -> None:
    live = run("STARTED", lease_until=LEASED)
    old = open_run(id="m-3", training="m-0", started_at=ago(minutes=31))
    assert closed(decide(world(live, instance(), open_run(), old), NOW)) == [("m-3", "FAILED")]


def test_a_run_that_a_training_left_open_is_finished_when_its_process_exited_0() -> None:
    over = run("SUCCESS", trained="m-1")
    assert closed(decide(world(over, open_run(id="m-2", training="m-1")), NOW)) == [("m-2", "FINISHED")]


def test_a_run_of_an_unknown_training_is_kept_while_an_instance_may_fill_it() -> None:
    assert decide(world(open_run(id="m-2", training="m-1"), instance(lease_until=LEASED)), NOW) == []
