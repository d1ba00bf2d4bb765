"""Builds that fail alike before their training begins are tried one at a time, and none of them is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import names
from orchestrator.errors import BuildUnusable, LaunchesPaused, OrchestratorError, SettingsError, SshUnreachable
from orchestrator.pipeline.builds import breaker
from orchestrator.pipeline.builds.breaker import ALIKE, Outcome, early_failures_noted, pause_of
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.jenkins_model import Model
from orchestrator_tests.support.sensor_daemon import Daemon

NOW = datetime(2026, 11, 27, tzinfo=UTC)


class Runs:
    """Runs of the pipeline's job, as Dagster's workers would leave them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.settings = SettingsSource(pipeline="churn", lookup=daemon.environment.get)

    def begin(self, *, tags: dict[str, str] | None = None) -> dg.DagsterRun:
        job = self.daemon.defs.resolve_job_def("churn_training")
        return self.daemon.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)

    def fail(self, error: OrchestratorError, *, early: bool = True) -> dg.DagsterRun:
        run = self.begin()
        if early:
            with (
                pytest.raises(type(error)),
                early_failures_noted(self.daemon.instance, run.run_id, "churn", self.settings),
            ):
                raise error
        self.daemon.instance.report_run_failed(run)
        return run

    def succeed(self) -> None:
        run = self.begin()
        self.daemon.instance.report_dagster_event(
            dg.DagsterEvent(event_type_value="PIPELINE_SUCCESS", job_name="churn_training"), run.run_id
        )


@pytest.fixture
def runs(daemon: Daemon) -> Runs:
    return Runs(daemon)


def later(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    """Let the breaker's clock go ahead."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(minutes=minutes)

    monkeypatch.setattr(breaker, "datetime", Clock)


def test_after_three_alike_nothing_is_launched_and_the_tick_says_why_in_one_sentence(
    model: Model, daemon: Daemon, runs: Runs
) -> None:
    for number in range(ALIKE):
        model.add()
        assert daemon.tick() == [str(number + 1)]
        last = runs.fail(SshUnreachable("no connection"))
    model.add()
    with pytest.raises(LaunchesPaused, match="the last 3 builds failed alike") as error:
        daemon.tick()
    assert "SshUnreachable" in str(error.value)
    assert last.run_id[:8] in str(error.value)


def test_one_is_tried_after_a_while_and_when_it_goes_well_all_that_waited_are_launched(
    model: Model, daemon: Daemon, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.add()
    daemon.tick()
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("no connection"))
    for _ in range(3):
        model.add()
    later(monkeypatch, 31)
    assert daemon.tick() == ["4"], "the newest one"
    probe = runs.begin(tags={names.DagsterTag.RUN_KEY: sorted(daemon.seen_run_keys)[-1]})
    with pytest.raises(LaunchesPaused):
        daemon.tick()
    daemon.instance.delete_run(probe.run_id)
    runs.succeed()
    assert daemon.tick() == ["2", "3"]
    assert daemon.tick() == []


def test_a_try_that_fails_alike_is_followed_by_another_build_not_by_the_same(
    model: Model, daemon: Daemon, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.add()
    daemon.tick()
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("no connection"))
    model.add()
    model.add()
    later(monkeypatch, 31)
    assert daemon.tick() == ["3"]
    runs.begin(tags={names.DagsterTag.RUN_KEY: f"churn:3:{model.jobs['team/churn'].builds[3].timestamp}"})
    run = daemon.instance.get_runs(limit=1)[0]
    with (
        pytest.raises(SshUnreachable),
        early_failures_noted(daemon.instance, run.run_id, "churn", runs.settings),
    ):
        raise SshUnreachable("no connection")
    daemon.instance.report_run_failed(run)
    with pytest.raises(LaunchesPaused, match="the last 4 builds"):
        breaker.require_closed(daemon.instance, "churn", runs.settings, minutes=30, now=datetime.now(UTC))
    later(monkeypatch, 62)
    assert daemon.tick() == ["2"]


@pytest.mark.parametrize(
    "errors",
    [
        [SshUnreachable("x"), SettingsError("x"), SshUnreachable("x")],
        [BuildUnusable("x")] * ALIKE,
        [SshUnreachable("x")] * (ALIKE - 1),
    ],
    ids=["of several kinds", "of single builds", "too few"],
)
def test_other_failures_pause_nothing(
    model: Model, daemon: Daemon, runs: Runs, errors: list[OrchestratorError]
) -> None:
    for error in errors:
        runs.fail(error)
    model.add()
    assert daemon.tick() == ["1"]


def test_trainings_that_fail_pause_nothing(model: Model, daemon: Daemon, runs: Runs) -> None:
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("x"), early=False)
    model.add()
    assert daemon.tick() == ["1"]


def test_changed_settings_end_the_pause(model: Model, daemon: Daemon, runs: Runs) -> None:
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("x"))
    model.add()
    with pytest.raises(LaunchesPaused):
        daemon.tick()
    daemon.environment["SECURITY_GROUP_ID"] = "sg-right"
    assert daemon.tick() == ["1"]


def test_a_model_that_was_recorded_by_hand_ends_the_pause(model: Model, daemon: Daemon, runs: Runs) -> None:
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("x"))
    model.add()
    daemon.instance.report_runless_asset_event(dg.AssetMaterialization(["churn", "trained_model"], partition="9"))
    assert daemon.tick() == ["1"]


def test_zero_minutes_never_pause(model: Model, daemon: Daemon, runs: Runs) -> None:
    daemon.environment["BREAKER_MINUTES"] = "0"
    for _ in range(ALIKE):
        runs.fail(SshUnreachable("x"))
    model.add()
    assert daemon.tick() == ["1"]


def test_the_tag_of_a_run_that_is_tried_again_does_not_count_for_the_new_one(
    model: Model, daemon: Daemon, runs: Runs
) -> None:
    failed = [runs.fail(SshUnreachable("x")) for _ in range(ALIKE)][-1]
    tags = daemon.instance.get_runs(filters=dg.RunsFilter(run_ids=[failed.run_id]))[0].tags
    again = runs.begin(tags={names.RunTag.FAILED_EARLY: tags[names.RunTag.FAILED_EARLY]})
    daemon.instance.report_run_failed(again)  # in its training
    model.add()
    assert daemon.tick() == ["1"]


def test_the_fingerprint_tells_nothing_of_a_secret_and_changes_with_it(daemon: Daemon, runs: Runs) -> None:
    before = breaker.fingerprint_of(daemon.instance, "churn", runs.settings)
    daemon.environment["JENKINS_TOKEN"] = "another"
    after = breaker.fingerprint_of(daemon.instance, "churn", runs.settings)
    assert before != after
    assert len(before) == 16


OUTCOMES = st.builds(
    Outcome,
    run_id=st.text("abc", min_size=1),
    succeeded=st.booleans(),
    kind=st.sampled_from([None, "SshUnreachable f", "SettingsError f", "SshUnreachable g"]),
    ended=st.just(NOW),
)


@given(st.lists(OUTCOMES))
def test_a_pause_is_always_of_equal_failures_in_a_row(outcomes: list[Outcome]) -> None:
    pause = pause_of(outcomes, fingerprint="f", minutes=30)
    if pause:
        assert {outcome.kind for outcome in outcomes[:ALIKE]} == {f"{pause.kind} f"}
        assert not any(outcome.succeeded for outcome in outcomes[: pause.count])
        assert pause.until == NOW + timedelta(minutes=30)
