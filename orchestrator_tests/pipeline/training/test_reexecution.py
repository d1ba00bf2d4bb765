"""A re-execution may begin at any step, whatever is left of the instance and of the MLflow run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import boto3
import dagster as dg
import pytest
import requests

from orchestrator import names
from orchestrator.definitions import shared
from orchestrator.errors import BuildBusy, MlflowNotFound
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow, MlflowResource
from orchestrator.settings.groups import MlflowSettings
from orchestrator_sandbox.proxy import REFUSED, FaultyProxy, Request
from orchestrator_tests.support.asset_runs import JOB, MODEL
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.recorded_builds import record_build

pytestmark = pytest.mark.services

QUICK = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def quick(world: World) -> dict[str, str]:
    return world.script("quick", QUICK)


def again(world: World, number: int, settings: dict[str, str], *, trained: str | None = None) -> Attempt:
    """The attempt of a run that re-executes run `<number>a`, which is over."""
    return world.attempt(number, run=ThisRun(f"{number}b", f"{number}a", trained_before=trained), settings=settings)


def delete(world: World, mlflow_run: str) -> None:
    url = f"{world.mlflow_server.url}/api/2.0/mlflow/runs/delete"
    requests.post(url, json={"run_id": mlflow_run}, timeout=30).raise_for_status()


def test_begun_at_train_it_uses_the_instance_that_is_still_there(world: World, quick: dict[str, str]) -> None:
    left = provisioned(world.attempt(301, run=ThisRun("301a"), settings=quick))
    attempt = again(world, 301, quick)
    assert attempt.train() == left.mlflow_run
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id == left.id
    assert attempt.finished().run.status == "FINISHED"
    attempt.close()


def test_begun_at_train_it_launches_an_instance_when_the_one_of_then_is_gone(
    world: World, quick: dict[str, str]
) -> None:
    left = provisioned(world.attempt(302, run=ThisRun("302a"), settings=quick))
    world.ec2.terminate(left.id)
    attempt = again(world, 302, quick)
    trained = attempt.train()
    assert trained != left.mlflow_run
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id != left.id
    assert attempt.finished().run.id == trained
    attempt.close()


def test_begun_at_train_it_leaves_an_instance_whose_mlflow_run_was_deleted(world: World, quick: dict[str, str]) -> None:
    left = provisioned(world.attempt(303, run=ThisRun("303a"), settings=quick))
    delete(world, left.mlflow_run)
    attempt = again(world, 303, quick)
    assert attempt.train() != left.mlflow_run
    assert gone(world, left.id)
    attempt.terminate()
    attempt.close()


def test_begun_at_terminate_it_ends_the_instance_that_is_still_there_and_then_records(
    world: World, quick: dict[str, str]
) -> None:
    trained = world.attempt(304, run=ThisRun("304a"), settings=quick).train()
    attempt = again(world, 304, quick, trained=trained)
    usage = attempt.terminate()
    assert usage is not None
    assert gone(world, usage.instance_id)
    finished = attempt.finished()
    assert finished.run.id == trained
    assert finished.usage is not None
    assert finished.usage.instance_id == usage.instance_id
    attempt.close()

    # The instance is gone now, and the run FINISHED.
    after = again(world, 304, quick, trained=trained)
    assert after.terminate() is None
    assert after.finished().usage == finished.usage
    after.close()

    # With its MLflow run deleted, there is nothing to record, but a model can be trained again.
    delete(world, trained)
    late = again(world, 304, quick, trained=trained)
    with pytest.raises(MlflowNotFound, match=rf"{trained}.*is deleted: restore it"):
        late.finished()
    late.close()
    anew = again(world, 304, quick, trained=trained)
    assert anew.train() != trained
    anew.terminate()
    assert anew.finished().run.status == "FINISHED"
    anew.close()


def test_begun_at_terminate_it_leaves_the_instance_of_a_live_run_alone(world: World, quick: dict[str, str]) -> None:
    live = world.attempt(305, run=ThisRun("305x"), settings=quick)
    used = provisioned(live)
    late = world.attempt(305, run=ThisRun("305b", "305a", live={"305x"}), settings=quick)
    with pytest.raises(BuildBusy, match="305x"):
        late.terminate()
    late.close()
    assert world.ec2.describe(used.id).alive
    live.close()


def test_what_is_recorded_when_the_tag_of_the_dead_run_was_lost_is_the_finished_run_of_the_build(
    world: World, quick: dict[str, str]
) -> None:
    first = world.attempt(306, run=ThisRun("306a"), settings=quick)
    trained = first.train()
    first.terminate()
    first.finished()
    first.close()
    attempt = again(world, 306, quick)
    assert attempt.terminate() is None
    assert attempt.finished().run.id == trained
    attempt.close()


class ImpatientMlflow(MlflowResource):
    """Waits for no outage, unless somebody asks for it."""

    def connect(self, settings: MlflowSettings) -> Mlflow:
        return Mlflow(settings, policy=retry.MLFLOW.with_total(0))


def training_job() -> dg.JobDefinition:
    """The pipeline's job; its MLflow client waits for no longer than MLFLOW_PATIENCE_MINUTES says."""
    pipeline = TrainingPipeline(name="churn").build_defs(dg.ComponentTree.for_test().load_context)
    resources = {**(shared().resources or {}), names.ResourceKey.MLFLOW: ImpatientMlflow()}
    return dg.Definitions.merge(pipeline, dg.Definitions(resources=resources)).resolve_job_def(JOB)


@dataclass(frozen=True)
class Runs:
    """Runs of that job in Dagster, each executed to its end."""

    dagster: dg.DagsterInstance

    def first(self, world: World, number: int) -> dg.DagsterRun:
        """Train a build that the sensor has recorded."""
        build = world.build(number)
        self.dagster.add_dynamic_partitions("churn_builds", [str(number)])
        record_build(self.dagster, build)
        return self._execute({"dagster/partition": str(number)}, None)

    def again(self, run: dg.DagsterRun, *, from_failure: bool) -> dg.DagsterRun:
        """Execute a run again; its tags are copied, as Dagster's web page and its daemon do."""
        options = (
            dg.ReexecutionOptions.from_failure(run.run_id, self.dagster)
            if from_failure
            else dg.ReexecutionOptions(run.run_id)
        )
        return self._execute(run.tags, options)

    def _execute(self, tags: Mapping[str, str], options: dg.ReexecutionOptions | None) -> dg.DagsterRun:
        job = dg.reconstructable(training_job)
        with dg.execute_job(job, self.dagster, tags=tags, reexecution_options=options) as result:
            run = self.dagster.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def steps(self, run: dg.DagsterRun) -> list[str]:
        """The steps that it began, in order."""
        begun = {stats.step_key.rpartition(".")[2] for stats in self.dagster.get_run_step_stats(run.run_id)}
        return sorted(begun, key=names.Step.ALL.index)

    def failure(self, run: dg.DagsterRun) -> str:
        """What the step said that failed."""
        [failed] = self.dagster.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        data = failed.get_dagster_event().step_failure_data.user_failure_data
        assert data is not None
        return str(data.description)

    def recorded(self, number: int) -> str:
        """The MLflow run of the build's model, as the asset's newest materialisation has it."""
        found = self.dagster.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=MODEL, asset_partitions=[str(number)]), limit=1
        )
        [record] = found.records
        assert record.asset_materialization is not None
        return str(record.asset_materialization.metadata["MLflow run ID"].value)


@pytest.fixture
def runs(world: World, dagster: dg.DagsterInstance, mlflow_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Runs:
    for name, value in {**world.environment, "MLFLOW_PATIENCE_MINUTES": "0"}.items():
        monkeypatch.setenv(name, value)
    return Runs(dagster)


def launched(number: int) -> list[str]:
    """IDs of all instances that this build ever had."""
    ours = [{"Name": "tag:orchestrator:partition", "Values": [str(number)]}]
    groups = boto3.client("ec2").describe_instances(Filters=cast(Any, ours))["Reservations"]
    return [instance["InstanceId"] for group in groups for instance in group["Instances"]]


@pytest.mark.parametrize(
    ("number", "from_failure", "steps"),
    [(311, True, ["record"]), (312, False, list(names.Step.ALL))],
    ids=["from failure", "all steps"],
)
def test_in_dagster_a_run_that_could_not_record_is_executed_again_without_another_training(
    number: int,
    from_failure: bool,
    steps: list[str],
    world: World,
    runs: Runs,
    mlflow_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    program = world.script("counted", f"#!/bin/sh\necho trained >>{tmp_path}/trainings\n")
    monkeypatch.setenv("MLFLOW_COMMAND", program["MLFLOW_COMMAND"])
    with ExitStack() as outage:

        def goes_away(request: Request) -> bool:
            if "/runs/get" in request.path:  # which `record` asks first
                outage.enter_context(mlflow_proxy.faulty(REFUSED))
            return False

        with mlflow_proxy.held(goes_away):
            first = runs.first(world, number)
    assert first.status == dg.DagsterRunStatus.FAILURE
    assert runs.steps(first) == list(names.Step.ALL)
    trained = first.tags[names.RunTag.TRAINED]
    assert f"is trained, but could not be recorded from MLflow run {trained}" in runs.failure(first)
    [instance] = launched(number)

    second = runs.again(first, from_failure=from_failure)
    assert second.status == dg.DagsterRunStatus.SUCCESS
    assert runs.steps(second) == steps
    assert runs.recorded(number) == trained
    assert world.mlflow.run(trained).status == "FINISHED"
    assert launched(number) == [instance]
    assert gone(world, instance)
    assert (tmp_path / "trainings").read_text() == "trained\n"

    # With a success, it is another thing: whoever executes that again wants another training.
    third = runs.again(second, from_failure=False)
    assert third.status == dg.DagsterRunStatus.SUCCESS
    assert runs.recorded(number) not in ("", trained)
    assert len(launched(number)) == 2
    assert (tmp_path / "trainings").read_text() == "trained\ntrained\n"


def test_in_dagster_a_run_whose_training_failed_is_executed_again_from_there_and_trains_anew(
    world: World, runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = world.script(
        "second-time", f"#!/bin/sh\n[ -e {tmp_path}/again ] && exit 0\ntouch {tmp_path}/again\nexit 4\n"
    )
    monkeypatch.setenv("MLFLOW_COMMAND", program["MLFLOW_COMMAND"])
    first = runs.first(world, 313)
    assert first.status == dg.DagsterRunStatus.FAILURE
    assert "exited with status 4" in runs.failure(first)
    assert names.RunTag.TRAINED not in first.tags
    [failed] = world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags={"dagster_run_id": first.run_id})
    assert failed.status == "FAILED"

    second = runs.again(first, from_failure=True)
    assert second.status == dg.DagsterRunStatus.SUCCESS
    assert runs.steps(second) == ["train", "terminate", "record"]
    trained = world.mlflow.run(runs.recorded(313))
    assert trained.id == second.tags[names.RunTag.TRAINED] != failed.id
    assert trained.status == "FINISHED"
    assert trained.tags["dagster_run_id"] == second.run_id
    assert trained.tags["dagster_root_run_id"] == first.run_id
    instances = launched(313)
    assert len(instances) == 2
    assert all(gone(world, instance) for instance in instances)
