"""`P/champion_model` and its sensor: one decision for each need, after runs, backfills and crashes alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.dagster_instance import report_canceled, report_failed
from orchestrator.definitions import shared
from orchestrator.names import DagsterTag, MlflowTag, RunTag
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.champion_asset import champion_key, decided_up_to, newest_model, trained_model_key
from orchestrator.pipeline.models.champion_sensor import MOST_TRIES, next_decision
from orchestrator.pipeline.models.declared import ChampionBlock, Goal
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow, MlflowResource
from orchestrator.settings.groups import MlflowSettings
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.dagster_internals import BulkActionStatus, PartitionBackfill, StepMaterializationData
from orchestrator_tests.support.logged_models import finished_run, log_model, read_dataset

NOW = datetime.now(UTC)


class ImpatientMlflow(MlflowResource):
    """Waits for no outage."""

    def connect(self, settings: MlflowSettings) -> Mlflow:
        return Mlflow(settings, policy=retry.MLFLOW.with_total(0))


@dataclass
class Installation:
    """A pipeline with a champion in Dagster, and its trained models on a real MLflow server."""

    dagster: dg.DagsterInstance
    server: MlflowServer
    model: str = field(default_factory=lambda: f"churn-{uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        block = ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model=self.model)
        pipeline = TrainingPipeline(name="churn", champion=block)
        built = pipeline.build_defs(dg.ComponentTree.for_test().load_context)
        self.pipeline = built
        self.definitions = dg.Definitions.merge(built, shared())
        self.dagster.add_dynamic_partitions("churn_builds", [str(number) for number in range(20)])

    def trained(self, build: int, accuracy: float, *, checks: str = "passed", **run_tags: str) -> str:
        """A model that was trained and recorded, by a run with these tags; its MLflow run."""
        tags = {
            MlflowTag.PIPELINE: "churn",
            MlflowTag.PARTITION: str(build),
            MlflowTag.JENKINS_BUILD: str(build),
            MlflowTag.JENKINS_TIMESTAMP: str(build),
            MlflowTag.JENKINS_URL: f"https://jenkins.example.com/job/churn/{build}/",
            MlflowTag.SOURCE_COMMIT: "c0ffee",
            MlflowTag.CHECKS: checks,
        }
        experiment = self.server.experiment("dagster")
        mlflow_run = finished_run(self.server.url, experiment, metrics={"accuracy": accuracy}, tags=tags)
        log_model(self.server.url, mlflow_run)
        self.record(build, mlflow_run, **run_tags)
        return mlflow_run

    def record(self, build: int, mlflow_run: str, **run_tags: str) -> None:
        """What the training's run reports, in a run with these tags."""
        metadata = {"MLflow run ID": mlflow_run}
        recorded = dg.AssetMaterialization(trained_model_key("churn"), partition=str(build), metadata=metadata)
        run = self._run(names.training_job("churn"), run_tags)
        event = dg.DagsterEvent(
            event_type_value="ASSET_MATERIALIZATION",
            job_name=run.job_name,
            event_specific_data=StepMaterializationData(recorded),
        )
        self.dagster.report_dagster_event(event, run_id=run.run_id)

    def _run(self, job: str, tags: dict[str, str]) -> dg.DagsterRun:
        return self.dagster.add_run(dg.DagsterRun(job_name=job, run_id=str(uuid4()), tags=tags))

    def choose(self, **tags: str) -> dg.ExecuteInProcessResult:
        """A run of the champion's job."""
        job = self.definitions.resolve_job_def(names.champion_job("churn"))
        return job.execute_in_process(instance=self.dagster, tags=tags, raise_on_error=False)

    def metadata(self, result: dg.ExecuteInProcessResult) -> dict[str, object]:
        [event] = result.asset_materializations_for_node("churn__champion_model")
        return {key: value.value for key, value in event.metadata.items()}

    def tick(self, now: datetime = NOW) -> dg.RunRequest | str:
        result = next_decision(self.dagster, "churn", now=now)
        return result if isinstance(result, dg.RunRequest) else str(result.skip_message)

    def run(self, status: dg.DagsterRunStatus, *, tags: dict[str, str]) -> dg.DagsterRun:
        """A run of the champion's job that has come so far."""
        run = self._run(names.champion_job("churn"), tags)
        event = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name=run.job_name, message="")
        self.dagster.report_dagster_event(event, run_id=run.run_id)
        if status == dg.DagsterRunStatus.FAILURE:
            report_failed(self.dagster, run, "it failed")
        elif status == dg.DagsterRunStatus.CANCELED:
            report_canceled(self.dagster, run, "it was cancelled")
        return run


@pytest.fixture
def installation(
    dagster: dg.DagsterInstance, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> Installation:
    for name, value in mlflow_server.env().items():
        monkeypatch.setenv(name, value)
    return Installation(dagster, mlflow_server)


def test_only_a_pipeline_with_a_champion_gets_any_of_it() -> None:
    definitions = TrainingPipeline(name="churn").build_defs(dg.ComponentTree.for_test().load_context)
    assert [sensor.name for sensor in definitions.sensors or []] == ["churn_jenkins_sensor"]
    assert [getattr(job, "name", "") for job in definitions.jobs or []] == ["churn_training"]
    keys = [asset.key for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition | dg.AssetSpec)]
    assert set(keys) == {dg.AssetKey(["churn", "jenkins_build"]), trained_model_key("churn")}


def test_the_best_is_chosen_and_shown(installation: Installation) -> None:
    installation.trained(1, 0.8)
    best = installation.trained(2, 0.9)
    installation.trained(3, 0.99, checks="failed")
    installation.record(4, "../../no-run")
    result = installation.choose()
    assert result.success
    metadata = installation.metadata(result)
    assert metadata["champion"] == (
        f"version 2 of {installation.model} is the first champion: accuracy 0.9, 0.1 better than version 1"
    )
    assert metadata["version"] == "2"
    assert metadata["MLflow run ID"] == best
    assert metadata["Jenkins build"] == "https://jenkins.example.com/job/churn/2/"
    assert metadata["commit"] == "c0ffee"
    assert metadata["metrics/accuracy"] == 0.9
    assert metadata["better than the next by"] == pytest.approx(0.1)
    assert str(metadata["model"]).endswith(f"/#/models/{installation.model}/versions/2")
    assert metadata["registered"] == "1, 2, 3"
    assert metadata["decided up to"] == newest_model(installation.dagster, "churn")

    # Once more, by hand: nothing is new.
    again = installation.metadata(installation.choose())
    assert "registered" not in again
    assert "stays the champion" in str(again["champion"])

    read_dataset(installation.server.url, installation.trained(5, 0.95), digest="b")
    third = installation.metadata(installation.choose())
    assert "version 4" in str(third["champion"])
    assert "is now the champion, after version 2" in str(third["champion"])
    warning = "version 2: not the same evaluation data: unknown, and holdout b of the champion"
    assert third["warning"] == warning
    assert "warning" not in metadata


def test_each_run_of_ours_renews_its_lease(installation: Installation) -> None:
    result = installation.choose()
    run = installation.dagster.get_run_by_id(result.run_id)
    assert run is not None
    assert RunTag.LEASE_UNTIL in run.tags
    assert "has no champion" in str(installation.metadata(result)["champion"])


def test_an_mlflow_that_is_away_fails_it_in_one_sentence_and_decides_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.trained(1, 0.8)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_PATIENCE_MINUTES", "0")
    resources = {names.ResourceKey.MLFLOW: ImpatientMlflow()}
    installation.definitions = dg.Definitions.merge(
        installation.pipeline, dg.Definitions(resources={**(shared().resources or {}), **resources})
    )
    result = installation.choose()
    assert not result.success
    failure = result.failure_data_for_node("churn__champion_model")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "MLflow at http://127.0.0.1:1 does not answer" in str(failure.user_failure_data.description)
    assert decided_up_to(installation.dagster, "churn") == 0


def test_one_need_is_one_run(installation: Installation) -> None:
    assert "was chosen over all" in str(installation.tick())
    installation.trained(1, 0.8)
    request = installation.tick()
    assert isinstance(request, dg.RunRequest)
    assert request == installation.tick()  # the same key, so that Dagster launches it once
    assert installation.choose(**request.tags).success
    assert "was chosen over all" in str(installation.tick())
    installation.trained(2, 0.8)
    following = installation.tick()
    assert isinstance(following, dg.RunRequest)
    assert following.run_key != request.run_key


def test_while_it_is_being_chosen_nothing_is_launched(installation: Installation) -> None:
    installation.trained(1, 0.8)
    run = installation.run(dg.DagsterRunStatus.STARTED, tags={})
    assert installation.tick() == "The champion is being chosen."
    report_canceled(installation.dagster, run, "")
    assert isinstance(installation.tick(), dg.RunRequest)


def test_one_that_failed_is_tried_again_later_and_not_for_ever(installation: Installation) -> None:
    installation.trained(1, 0.8)
    keys = []
    now = datetime.now(UTC)
    for _ in range(MOST_TRIES):
        request = installation.tick(now)
        assert isinstance(request, dg.RunRequest)
        keys.append(request.run_key)
        installation.run(dg.DagsterRunStatus.FAILURE, tags=dict(request.tags))
        if len(keys) < MOST_TRIES:
            assert "it is tried again at" in str(installation.tick())
        now = datetime.now(UTC) + timedelta(days=1)
    assert len(set(keys)) == MOST_TRIES
    assert "could not be chosen 6 times" in str(installation.tick(now))
    installation.trained(2, 0.9)
    assert isinstance(installation.tick(now), dg.RunRequest)


def test_one_that_somebody_cancelled_is_not_tried_again(installation: Installation) -> None:
    installation.trained(1, 0.8)
    request = installation.tick()
    assert isinstance(request, dg.RunRequest)
    installation.run(dg.DagsterRunStatus.CANCELED, tags=dict(request.tags))
    assert "is CANCELED" in str(installation.tick(NOW + timedelta(days=1)))


def test_one_that_dagster_retries_is_left_to_dagster(installation: Installation) -> None:
    installation.trained(1, 0.8)
    request = installation.tick()
    assert isinstance(request, dg.RunRequest)
    tags = {**request.tags, DagsterTag.WILL_RETRY: "true"}
    installation.run(dg.DagsterRunStatus.FAILURE, tags=tags)
    assert "Dagster retries run" in str(installation.tick(NOW + timedelta(days=1)))


def backfill(status: BulkActionStatus, backfill_id: str) -> PartitionBackfill:
    return PartitionBackfill(
        backfill_id=backfill_id, status=status, from_failure=False, tags={}, backfill_timestamp=NOW.timestamp()
    )


@pytest.mark.parametrize(
    "end", [BulkActionStatus.COMPLETED_SUCCESS, BulkActionStatus.COMPLETED_FAILED, BulkActionStatus.CANCELED]
)
def test_for_a_backfill_it_is_chosen_once_when_that_has_ended(
    installation: Installation, end: BulkActionStatus
) -> None:
    installation.dagster.add_backfill(backfill(BulkActionStatus.REQUESTED, "past"))
    for build, accuracy in ((1, 0.7), (2, 0.9), (3, 0.8)):
        installation.trained(build, accuracy, **{DagsterTag.BACKFILL: "past"})
        assert installation.tick() == "The champion is chosen when backfill past has ended."
    installation.dagster.update_backfill(backfill(BulkActionStatus(end), "past"))  # builds 4 and 5 have failed
    request = installation.tick()
    assert isinstance(request, dg.RunRequest)
    result = installation.choose(**request.tags)
    assert "version 2 of" in str(installation.metadata(result)["champion"])
    assert installation.metadata(result)["registered"] == "1, 2, 3"
    assert "was chosen over all" in str(installation.tick())


def test_a_build_beside_a_backfill_does_not_wait_for_that(installation: Installation) -> None:
    installation.dagster.add_backfill(backfill(BulkActionStatus.REQUESTED, "past"))
    installation.trained(1, 0.7, **{DagsterTag.BACKFILL: "past"})
    installation.trained(7, 0.9)
    assert isinstance(installation.tick(), dg.RunRequest)


def test_decisions_that_are_recorded_in_another_order_count(installation: Installation) -> None:
    for upto in (12, 10):
        installation.dagster.report_runless_asset_event(
            dg.AssetMaterialization(champion_key("churn"), metadata={"decided up to": upto})
        )
    for nonsense in ("x", 1.5):
        installation.dagster.report_runless_asset_event(
            dg.AssetMaterialization(champion_key("churn"), metadata={"decided up to": nonsense})
        )
    assert decided_up_to(installation.dagster, "churn") == 12
