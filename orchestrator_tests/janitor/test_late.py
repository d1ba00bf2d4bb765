"""An instance past its deadline is ended, live attempt or not, whatever its tags say now; its run is red for good."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from orchestrator.janitor.rules import Action, CloseRun, EndRun, Terminate, decide, missing_late
from orchestrator.janitor.snapshot import TrainingRun
from orchestrator.names import Ec2Tag
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.resources.ec2 import Instance
from orchestrator_tests.support.janitor_world import NOW, ago, instance, open_run, run, world


def launch(*, minutes: float | None = 10, expires_at: datetime, id: str = "i-1") -> LaunchRecord:
    return LaunchRecord(
        instance_id=id, host_key="SHA256:k", mlflow_run="m-1", expires_at=expires_at, max_minutes=minutes
    )


def live(expires_at: datetime, *, minutes: float | None = 10, **more: Any) -> TrainingRun:
    """A run whose worker is alive, with what it has kept of its launch."""
    kept = launch(minutes=minutes, expires_at=expires_at)
    return run("STARTED", **{"lease_until": NOW + timedelta(seconds=90), "launch": kept, **more})


def launched(minutes: float, **more: Any) -> Instance:
    """An instance of `run-1` that was launched so many minutes ago."""
    return instance(launched_at=ago(minutes=minutes), lease_until=NOW + timedelta(seconds=90), **more)


def terminated(actions: list[Action]) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.instance.id, one.late_runs) for one in actions if isinstance(one, Terminate)]


def test_an_instance_past_its_deadline_is_ended_under_a_live_attempt() -> None:
    late = launched(13.1, power_off_at=ago(minutes=2))
    (action,) = decide(world(late, live(ago(minutes=2))), NOW)
    assert terminated([action]) == [("i-1", ("run-1",))]
    assert action.why == "it ran past its deadline of 10 min: it was to end at 2031-05-17 08:26 UTC"


def test_it_is_left_to_its_other_keepers_for_two_minutes() -> None:
    on_time = launched(11.9, power_off_at=ago(minutes=1.9))
    assert decide(world(on_time, live(ago(minutes=1.9))), NOW) == []


@pytest.mark.parametrize("tag", [None, "tomorrow", "never", "", "9999-12-31T23:59:59Z"])
def test_a_changed_or_missing_tag_does_not_help(tag: str | None) -> None:
    late = launched(13.1)
    tags = dict(late.tags)
    if tag is not None:
        tags[Ec2Tag.EXPIRES_AT] = (NOW + timedelta(days=1)).isoformat() if tag == "tomorrow" else tag
    state = world(replace(late, tags=tags), live(ago(minutes=2.1)))
    assert terminated(decide(state, NOW)) == [("i-1", ("run-1",))]


def test_nor_does_a_lie_about_whose_it_is() -> None:
    late = launched(13.1, owner="run-9", partition="another", pipeline="fraud", power_off_at=NOW + timedelta(days=1))
    state = world(late, live(ago(minutes=2.1)), run("STARTED", id="run-9", partition="another"))
    assert terminated(decide(state, NOW)) == [("i-1", ("run-1",))], "and run-9 gets no mark"


def test_nor_does_the_loss_of_all_tags() -> None:
    bare = replace(launched(13.1), tags={})
    state = world(live(ago(minutes=2.1)))
    assert missing_late(state, NOW) == {"i-1"}
    (action,) = decide(replace(state, disguised=(bare,)), NOW)
    assert terminated([action]) == [("i-1", ("run-1",))]
    assert "does not bear our tags any more" in action.why


def test_a_later_launch_time_than_ours_is_not_believed() -> None:
    restarted = launched(1, power_off_at=NOW + timedelta(days=1))
    assert terminated(decide(world(restarted, live(ago(minutes=2.1))), NOW)) == [("i-1", ("run-1",))]


def test_an_earlier_record_than_its_launch_is_believed_too() -> None:
    moved = launched(12.1, power_off_at=NOW + timedelta(days=1))
    assert terminated(decide(world(moved, live(NOW + timedelta(days=1))), NOW)) == [("i-1", ("run-1",))]


def test_what_was_launched_with_more_minutes_than_are_set_now_is_left_alone() -> None:
    # No rule reads MAX_TRAINING_MINUTES: what the run was launched with counts.
    long = launched(600, power_off_at=NOW + timedelta(minutes=120))
    assert decide(world(long, live(NOW + timedelta(minutes=120), minutes=720)), NOW) == []


def test_an_instance_of_which_nothing_is_kept_has_its_tag_alone() -> None:
    assert decide(world(launched(6000), run("STARTED", lease_until=NOW)), NOW) == []
    past = launched(6000, power_off_at=ago(minutes=2))
    assert terminated(decide(world(past, run("STARTED", lease_until=NOW + timedelta(seconds=9))), NOW)) == [("i-1", ())]


def test_another_deployments_instance_is_not_ours_to_end() -> None:
    theirs = launched(6000, deployment="theirs", power_off_at=ago(minutes=60))
    assert decide(world(theirs), NOW) == []


def test_an_instance_whose_tags_were_taken_is_not_ended_before_its_deadline() -> None:
    early = replace(launched(5), tags={Ec2Tag.DEPLOYMENT: "ours"})
    assert decide(world(early, live(NOW + timedelta(minutes=5))), NOW) == []


def test_a_dead_worker_whose_training_was_late_is_not_retried() -> None:
    late = launched(14, power_off_at=ago(minutes=3))
    dead = live(ago(minutes=3), lease_until=ago(minutes=5))
    ended, ending = decide(world(replace(late, tags={**late.tags, Ec2Tag.LEASE_UNTIL: ""}), dead), NOW)
    assert isinstance(ended, EndRun)
    assert ended.final
    assert ended.why == "its training ran past its deadline of 10 min, and its worker is gone"
    assert isinstance(ending, Terminate)


def test_and_neither_when_the_instance_was_ended_in_an_earlier_tick() -> None:
    dead = live(ago(minutes=3), lease_until=ago(minutes=5), created_at=ago(minutes=20), late_since=ago(minutes=1))
    (ended,) = decide(world(dead), NOW)
    assert isinstance(ended, EndRun)
    assert ended.final


def test_a_retry_in_the_queue_is_red_once_what_it_was_to_take_over_was_late() -> None:
    failed = run("FAILURE", launch=launch(expires_at=ago(minutes=3)), will_retry=True, retry="run-2")
    queued = run("QUEUED", id="run-2", started_at=None, created_at=ago(minutes=5), launch=failed.launch)
    late = launched(14, power_off_at=ago(minutes=3))
    assert terminated(decide(world(late, failed, queued), NOW)) == [("i-1", ("run-2",))]
    (ended,) = decide(world(failed, replace(queued, late_since=NOW)), NOW)
    assert isinstance(ended, EndRun)
    assert (ended.run.id, ended.final) == ("run-2", True)
    assert "ran past its deadline of 10 min" in ended.why


def test_a_worker_that_is_alive_has_its_time_to_say_it_itself() -> None:
    saying = live(ago(minutes=5), created_at=ago(minutes=20), late_since=ago(minutes=9))
    assert decide(world(saying), NOW) == []
    (ended,) = decide(world(replace(saying, late_since=ago(minutes=10))), NOW)
    assert isinstance(ended, EndRun)
    assert ended.final


def test_a_re_execution_by_hand_does_not_inherit_that_its_parent_was_late() -> None:
    again = run("QUEUED", id="run-2", started_at=None, created_at=ago(minutes=1), late_since=ago(minutes=30))
    started = live(NOW + timedelta(minutes=5), id="run-3", created_at=ago(minutes=20), late_since=ago(minutes=30))
    assert decide(world(again, started), NOW) == []


def test_the_mlflow_run_of_a_late_training_failed_because_of_that() -> None:
    owner = run(
        "FAILURE",
        will_retry=False,
        ended_at=ago(minutes=1),
        created_at=ago(minutes=20),
        late_since=ago(minutes=2),
        launch=launch(expires_at=ago(minutes=5)),
    )
    (closed,) = decide(world(open_run(), owner), NOW)
    assert isinstance(closed, CloseRun)
    assert closed.status == "FAILED"
    assert "its training ran past its deadline of 10 min" in closed.why
