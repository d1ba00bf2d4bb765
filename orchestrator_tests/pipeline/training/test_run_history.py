"""What a run learns from Dagster's own books: whom it tries again, what was trained, who is live, who came first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.names import DagsterTag, Ec2Tag
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.pipeline.training.run_history import Liveness, RunHistory
from orchestrator.resources.ec2 import Instance, fingerprint
from orchestrator_tests.support.dagster_internals import PARENT_RUN_ID_TAG
from orchestrator_tests.support.instances import new_instance
from orchestrator_tests.support.janitor_world import instance

pytestmark = pytest.mark.services

MODEL = dg.AssetKey(["tiny", "trained_model"])
FAILURE, SUCCESS = dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS
STARTED = dg.DagsterRunStatus.STARTED
HOST_KEY, OTHER_KEY = "ssh-ed25519 AAAA", "ssh-ed25519 BBBB"
FINGERPRINT = fingerprint(HOST_KEY)


@dg.job
def tiny_training() -> None: ...


@dg.job
def other_training() -> None: ...


@dg.asset(key=MODEL)
def model() -> None: ...


@dg.asset(key=["other", "trained_model"])
def other_model() -> None: ...


ASSET_PAGE = dg.Definitions(assets=[model, other_model]).resolve_implicit_global_asset_job_def()
"""The job of which Dagster's asset pages launch a part."""


@pytest.fixture
def dagster() -> Iterator[dg.DagsterInstance]:
    with new_instance() as instance:
        yield instance


def new_run(
    dagster: dg.DagsterInstance,
    *,
    status: dg.DagsterRunStatus = STARTED,
    tries: dg.DagsterRun | None = None,
    tags: Mapping[str, str] | None = None,
    partition: str = "1",
    job: dg.JobDefinition = tiny_training,
    asset: dg.AssetKey | None = None,
) -> dg.DagsterRun:
    """A run as Dagster makes it; one that tries another again gets that one's tags, too.

    See `create_reexecuted_run` in Dagster's _core/instance/runs/run_domain.py.
    """
    inherited = dict(dagster_tags(dagster, tries)) if tries else {}
    if tries:
        inherited |= {PARENT_RUN_ID_TAG: tries.run_id, DagsterTag.ROOT_RUN: tries.root_run_id or tries.run_id}
    run = dagster.create_run_for_job(
        job,
        tags={**inherited, "dagster/partition": partition, **(tags or {})},
        parent_run_id=tries.run_id if tries else None,
        root_run_id=(tries.root_run_id or tries.run_id) if tries else None,
        asset_selection={asset} if asset else None,
    )
    if status != dg.DagsterRunStatus.NOT_STARTED:
        report(dagster, run, dg.DagsterEventType.RUN_START)
    end = {FAILURE: dg.DagsterEventType.RUN_FAILURE, SUCCESS: dg.DagsterEventType.RUN_SUCCESS}.get(status)
    if end:
        report(dagster, run, end)
    return run


def report(dagster: dg.DagsterInstance, run: dg.DagsterRun, event: dg.DagsterEventType) -> None:
    dagster.report_dagster_event(dg.DagsterEvent(event_type_value=event.value, job_name=run.job_name), run.run_id)


def dagster_tags(dagster: dg.DagsterInstance, run: dg.DagsterRun) -> Mapping[str, str]:
    known = dagster.get_run_by_id(run.run_id)
    assert known is not None
    return known.tags


def seen_from(dagster: dg.DagsterInstance, run: dg.DagsterRun) -> RunHistory:
    """As one of its steps sees it."""
    context = SimpleNamespace(
        instance=dagster,
        assets_def=SimpleNamespace(key=MODEL),
        partition_key=run.tags["dagster/partition"],
        run_id=run.run_id,
        run=run,
    )
    return RunHistory(cast(Any, context))


def test_a_run_that_tries_no_other_again_is_its_own_root(dagster: dg.DagsterInstance) -> None:
    run = new_run(dagster)
    this = seen_from(dagster, run)
    assert (this.run_id, this.root_run_id, this.trained_before) == (run.run_id, run.run_id, None)


def test_what_a_run_trained_is_known_to_every_retry_of_it_and_all_have_the_first_as_their_root(
    dagster: dg.DagsterInstance,
) -> None:
    first = new_run(dagster, status=FAILURE)
    second = new_run(dagster, tries=first)
    seen_from(dagster, second).trained("mlflow-2")
    report(dagster, second, dg.DagsterEventType.RUN_FAILURE)
    third = new_run(dagster, tries=second, status=FAILURE)
    fourth = new_run(dagster, tries=third)
    assert seen_from(dagster, second).root_run_id == first.run_id
    for retry in (third, fourth):
        this = seen_from(dagster, retry)
        assert (this.root_run_id, this.trained_before) == (first.run_id, "mlflow-2")


def test_a_retry_of_runs_that_never_saw_a_training_end_knows_of_none(dagster: dg.DagsterInstance) -> None:
    first = new_run(dagster, status=FAILURE)
    second = new_run(dagster, tries=first, status=FAILURE)
    this = seen_from(dagster, new_run(dagster, tries=second))
    assert (this.root_run_id, this.trained_before) == (first.run_id, None)


def test_executing_a_success_again_is_a_training_of_its_own_whatever_tags_dagster_copies(
    dagster: dg.DagsterInstance,
) -> None:
    success = new_run(dagster, status=SUCCESS, tags={names.RunTag.TRAINED: "mlflow-1"})
    again = new_run(dagster, tries=success)
    assert again.tags[names.RunTag.TRAINED] == "mlflow-1"
    assert again.root_run_id == success.run_id
    this = seen_from(dagster, again)
    assert (this.root_run_id, this.trained_before) == (again.run_id, None)


def test_a_retry_of_a_second_training_does_not_take_the_first_ones_model_for_its_own(
    dagster: dg.DagsterInstance,
) -> None:
    success = new_run(dagster, status=SUCCESS, tags={names.RunTag.TRAINED: "mlflow-1"})
    again = new_run(dagster, tries=success, status=FAILURE)
    retry = new_run(dagster, tries=again)
    this = seen_from(dagster, retry)
    assert (this.root_run_id, this.trained_before) == (again.run_id, None)
    this.trained("mlflow-2")
    report(dagster, retry, dg.DagsterEventType.RUN_FAILURE)
    assert seen_from(dagster, new_run(dagster, tries=retry)).trained_before == "mlflow-2"


def test_executing_a_failure_again_whose_retry_has_trained_knows_of_that_training(dagster: dg.DagsterInstance) -> None:
    first = new_run(dagster, status=FAILURE)
    retry = new_run(dagster, tries=first)
    seen_from(dagster, retry).trained("mlflow-2")
    report(dagster, retry, dg.DagsterEventType.RUN_SUCCESS)
    another = new_run(dagster, tries=retry)
    seen_from(dagster, another).trained("mlflow-3")
    report(dagster, another, dg.DagsterEventType.RUN_SUCCESS)
    this = seen_from(dagster, new_run(dagster, tries=first))
    assert this.root_run_id == first.run_id
    assert this.trained_before == "mlflow-2", "mlflow-3 is a training of its own"


def test_that_a_training_exited_0_is_kept_when_the_database_is_away_for_a_moment(
    dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(dagster)
    this = seen_from(dagster, run)
    away = [ConnectionError("the database is restarting")] * 2
    really = dagster.add_run_tags

    def add_run_tags(run_id: str, tags: dict[str, str]) -> None:
        if away:
            raise away.pop()
        really(run_id, tags)

    monkeypatch.setattr(dagster, "add_run_tags", add_run_tags)
    this.trained("mlflow-1")
    assert dagster_tags(dagster, run)[names.RunTag.TRAINED] == "mlflow-1"


def test_a_run_is_alive_until_it_ends_and_nobody_knows_of_one_that_dagster_never_had(
    dagster: dg.DagsterInstance,
) -> None:
    run = new_run(dagster)
    this = seen_from(dagster, run)
    waiting = new_run(dagster, status=dg.DagsterRunStatus.NOT_STARTED)
    assert this.liveness(run.run_id) is Liveness.ALIVE
    assert this.liveness(waiting.run_id) is Liveness.ALIVE
    assert this.liveness(new_run(dagster, status=FAILURE).run_id) is Liveness.DEAD
    assert this.liveness(new_run(dagster, status=SUCCESS).run_id) is Liveness.DEAD
    assert this.liveness("of another Dagster") is Liveness.UNKNOWN
    report(dagster, run, dg.DagsterEventType.RUN_CANCELING)
    assert this.liveness(run.run_id) is Liveness.ALIVE
    report(dagster, run, dg.DagsterEventType.RUN_CANCELED)
    assert this.liveness(run.run_id) is Liveness.DEAD


@pytest.mark.parametrize(
    ("job", "asset"), [(tiny_training, None), (ASSET_PAGE, MODEL)], ids=["run of the job", "asset page"]
)
def test_a_run_that_began_this_build_before_us_and_is_still_at_it_is_our_rival(
    dagster: dg.DagsterInstance, job: dg.JobDefinition, asset: dg.AssetKey | None
) -> None:
    first = new_run(dagster, job=job, asset=asset)
    second, third = new_run(dagster), new_run(dagster)
    assert seen_from(dagster, first).rival() is None
    assert seen_from(dagster, second).rival() == first.run_id
    assert seen_from(dagster, third).rival() == first.run_id
    report(dagster, first, dg.DagsterEventType.RUN_FAILURE)
    assert seen_from(dagster, second).rival() is None
    assert seen_from(dagster, third).rival() == second.run_id


def test_whoever_trains_another_build_or_has_ended_or_makes_something_else_is_no_rival(
    dagster: dg.DagsterInstance,
) -> None:
    new_run(dagster, partition="2")
    new_run(dagster, status=FAILURE)
    new_run(dagster, status=SUCCESS)
    new_run(dagster, status=dg.DagsterRunStatus.NOT_STARTED)
    new_run(dagster, job=other_training)
    new_run(dagster, job=ASSET_PAGE, asset=other_model.key)
    assert seen_from(dagster, new_run(dagster)).rival() is None


# ---- What was launched


def kept(**changed: Any) -> LaunchRecord:
    expires_at = datetime(2031, 5, 17, tzinfo=UTC)
    values = {"instance_id": "i-1", "host_key": FINGERPRINT, "mlflow_run": "m-1", "expires_at": expires_at}
    return LaunchRecord(**{**values, **changed})


def seen_in_ec2(owner: str, *, id: str = "i-1", host_key: str = HOST_KEY) -> Instance:
    tags = {Ec2Tag.DAGSTER_RUN: owner, Ec2Tag.HOST_KEY: host_key, Ec2Tag.MLFLOW_RUN: "m-1"}
    return replace(instance(owner, id=id), tags=tags)


def test_what_a_run_has_launched_is_known_to_its_retries_and_to_a_new_run_of_the_build(
    dagster: dg.DagsterInstance,
) -> None:
    first = new_run(dagster)
    seen_from(dagster, first).launched(kept())
    report(dagster, first, dg.DagsterEventType.RUN_FAILURE)
    second = new_run(dagster, tries=first, status=FAILURE)
    for later in (new_run(dagster, tries=second), new_run(dagster)):
        this = seen_from(dagster, later)
        assert this.launch_of(seen_in_ec2(first.run_id)) == kept()
        assert this.launch_of(seen_in_ec2(first.run_id, id="i-2")) is None
        assert this.launch_of(seen_in_ec2(first.run_id, host_key=OTHER_KEY)) is None
    assert set(seen_from(dagster, new_run(dagster, tries=second)).launched_before()) == {kept()}
    assert seen_from(dagster, new_run(dagster)).launched_before() == set()


def test_what_a_run_of_another_build_or_pipeline_has_launched_is_not_believed_for_this_one(
    dagster: dg.DagsterInstance,
) -> None:
    another_build = new_run(dagster, partition="2", tags=kept().tags())
    another_pipeline = new_run(dagster, job=other_training, tags=kept().tags())
    this = seen_from(dagster, new_run(dagster))
    for owner in (another_build.run_id, another_pipeline.run_id, "nobody", ""):
        assert this.launch_of(seen_in_ec2(owner)) is None


def test_that_its_training_was_ended_late_is_read_anew_and_not_inherited(dagster: dg.DagsterInstance) -> None:
    run = new_run(dagster)
    this = seen_from(dagster, run)
    assert not this.ended_late()
    dagster.add_run_tags(run.run_id, {names.RunTag.LATE: "2031-05-17T08:30:00Z"})
    assert this.ended_late()
    report(dagster, run, dg.DagsterEventType.RUN_FAILURE)
    parent = dagster.get_run_by_id(run.run_id)
    assert parent is not None
    assert not seen_from(dagster, new_run(dagster, tries=parent)).ended_late(), "somebody re-executes it by hand"
