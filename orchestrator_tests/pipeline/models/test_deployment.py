"""From alias to target: what is launched, what is deployed, and what is noted when that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.definitions import shared
from orchestrator.errors import DeploymentFailed, TargetUnavailable
from orchestrator.names import VersionTag
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.champion_asset import decided_up_to, newest_model
from orchestrator.pipeline.models.declared import ChampionBlock, Goal
from orchestrator.pipeline.models.deployment import DeploymentBlock, DeploymentRule
from orchestrator.pipeline.models.deployment_sensor import compare, next_run
from orchestrator.resources.mlflow import Mlflow, MlflowResource, ModelVersion
from orchestrator.resources.targets import DirectoryTarget, ModelFolder, Release, TargetBlock
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.dagster_internals import SensorExecutionData
from orchestrator_tests.support.logged_models import FILES, finished_run, log_model
from orchestrator_tests.support.mlflow_client import client

DEPLOYED = dg.AssetKey(["churn", "deployed_model"])


@dataclass
class PipelineWithTarget:
    """A pipeline whose target is a directory, its registered model, and Dagster."""

    mlflow: Mlflow
    experiment: str
    directory: Path
    when: str = "automatic"
    chooses: bool = False
    model: str = field(default_factory=lambda: f"churn_{uuid4().hex[:8]}")
    dagster: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)
    cursor: str | None = None

    @property
    def rule(self) -> DeploymentRule:
        rule = self.component.deployment_rule()
        assert rule is not None
        return rule

    @property
    def component(self) -> TrainingPipeline:
        block = {"when": self.when, "target": {"directory": str(self.directory)}}
        champion = ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model=self.model) if self.chooses else None
        return TrainingPipeline(name=self.model, champion=champion, deployment=DeploymentBlock.model_validate(block))

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey([self.model, "deployed_model"])

    @property
    def definitions(self) -> dg.Definitions:
        return dg.Definitions.merge(self.component.build_defs(dg.ComponentTree.for_test().load_context), shared())

    def register(self, accuracy: float = 0.9) -> ModelVersion:
        """A new version, whose build is its number."""
        tags = {"jenkins.build": "7", "mlflow.source.git.commit": "c0ffee", "orchestrator.pipeline": self.model}
        run_id = finished_run(self.mlflow.uri, self.experiment, metrics={"accuracy": accuracy}, tags=tags)
        log_model(self.mlflow.uri, run_id, files={**FILES, "accuracy.txt": str(accuracy)})
        self.mlflow.registry.require_registered(self.model)
        model = self.mlflow.registry.model_of(self.mlflow.run(run_id))
        assert model is not None
        return self.mlflow.registry.register(self.model, model, tags={})

    def promote(self, version: ModelVersion) -> None:
        self.mlflow.registry.set_alias(version, names.CHAMPION_ALIAS)

    def champion(self) -> str:
        return self.mlflow.model_files.version_at(self.model, names.CHAMPION_ALIAS)

    def tags(self, version: ModelVersion) -> dict[str, str]:
        found = self.mlflow.model_files.of_version(self.model, version.version).version
        assert found is not None
        return {key: value for key, value in found.tags.items() if value}

    def tick(self) -> SensorExecutionData:
        repository = self.definitions.get_repository_def()
        resources = {names.ResourceKey.MLFLOW: MlflowResource()}
        context = dg.build_sensor_context(
            self.dagster, cursor=self.cursor, repository_def=repository, resources=resources
        )
        result = repository.get_sensor_def(names.deployment_sensor(self.model)).evaluate_tick(context)
        self.cursor = result.cursor
        return result

    def launched(self) -> list[str]:
        """The versions that a tick launches a run for."""
        return [request.tags[names.RunTag.MODEL_VERSION] for request in self.tick().run_requests or []]

    def run(self, *, version: str = "", launched_for: str = "") -> dg.ExecuteInProcessResult:
        node = f"{self.model}__deployed_model"
        return self.definitions.resolve_job_def(names.deployment_job(self.model)).execute_in_process(
            instance=self.dagster,
            run_config={"ops": {node: {"config": {"version": version}}}} if version else None,
            tags={names.RunTag.MODEL_VERSION: launched_for} if launched_for else None,
            raise_on_error=False,
        )

    def decide(self) -> bool:
        """A run that chooses the champion."""
        job = self.definitions.resolve_job_def(names.champion_job(self.model))
        return job.execute_in_process(instance=self.dagster, raise_on_error=False).success

    def shown_champions(self) -> list[str]:
        """The versions that `P/champion_model` has shown, the newest first."""
        records = self.dagster.fetch_materializations(dg.AssetKey([self.model, "champion_model"]), limit=10).records
        events = [record.asset_materialization for record in records]
        return [str(event.metadata["version"].value) for event in events if event and "version" in event.metadata]

    def report(self, result: SensorExecutionData) -> None:
        """What Dagster's daemon does with the events of a tick."""
        for event in result.asset_events:
            self.dagster.report_runless_asset_event(event)

    def in_use(self) -> Release | None:
        return DirectoryTarget(self.directory).state()


@pytest.fixture
def pipeline(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PipelineWithTarget]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    monkeypatch.setenv("ORCHESTRATOR_DEPLOYMENT", "lab")
    with client(mlflow_server.url) as mlflow:
        yield PipelineWithTarget(mlflow, mlflow_server.experiment("deployment"), tmp_path / "srv")


def test_the_champion_is_deployed_and_so_is_each_next_one_and_a_rollback(pipeline: PipelineWithTarget) -> None:
    assert "no champion yet" in (pipeline.tick().skip_message or "")
    first, second = pipeline.register(0.8), pipeline.register(0.9)
    for version in (first, second, first):
        pipeline.promote(version)
        assert pipeline.launched() == [version.version]
        assert pipeline.run(launched_for=version.version).success
        in_use = pipeline.in_use()
        assert in_use is not None
        assert (in_use.version, in_use.build, in_use.commit) == (version.version, "7", "c0ffee")
        assert (in_use.pipeline, in_use.deployment) == (pipeline.model, "lab")
        assert pipeline.launched() == []
    assert (pipeline.directory / "current/accuracy.txt").read_text() == "0.8"


def test_a_deployment_is_recorded_with_its_history(pipeline: PipelineWithTarget) -> None:
    for accuracy in (0.8, 0.9):
        pipeline.promote(pipeline.register(accuracy))
        result = pipeline.run()
        assert result.success
    event = result.asset_materializations_for_node(f"{pipeline.model}__deployed_model")[0]
    assert event.metadata["version"].value == "2"
    assert event.metadata["before"].value == "1"
    history = event.metadata["history"]
    assert isinstance(history, dg.TableMetadataValue)
    assert [row.data["version"] for row in history.records] == ["2", "1"]
    [check] = result.get_asset_check_evaluations()
    assert check.passed


def test_what_another_pipeline_holds_is_refused(pipeline: PipelineWithTarget) -> None:
    version = pipeline.register()
    pipeline.promote(version)
    pipeline.run()
    (record := pipeline.directory / "current/deployed.json").write_text(
        record.read_text().replace('"lab"', '"production"')
    )
    with pytest.raises(Exception, match="installation 'production'"):
        pipeline.tick()
    assert not pipeline.run().success


class TestAModelThatDoesNotWork:
    @pytest.fixture(autouse=True)
    def _failing(self, monkeypatch: pytest.MonkeyPatch, pipeline: PipelineWithTarget) -> None:
        self.fault: Exception | None = None
        deploy = DirectoryTarget.deploy

        def failing(
            target: DirectoryTarget, release: Release, model: ModelFolder, *, take_over: bool = False
        ) -> Release | None:
            if self.fault is not None:
                raise self.fault
            return deploy(target, release, model, take_over=take_over)

        monkeypatch.setattr(DirectoryTarget, "deploy", failing)

    def test_the_alias_names_again_what_is_in_use(self, pipeline: PipelineWithTarget) -> None:
        first, second = pipeline.register(), pipeline.register()
        pipeline.promote(first)
        assert pipeline.run().success
        pipeline.promote(second)
        self.fault = DeploymentFailed("no module named sklearn_of_tomorrow")
        result = pipeline.run(launched_for="2")

        assert not result.success
        in_use = pipeline.in_use()
        assert in_use is not None
        assert in_use.version == pipeline.champion() == "1"
        failed = json.loads(pipeline.tags(second)[VersionTag.DEPLOYMENT_FAILED])
        assert failed["reason"] == "no module named sklearn_of_tomorrow"
        assert VersionTag.REJECTED in pipeline.tags(second)
        assert pipeline.launched() == []

    def test_the_first_of_all_waits_for_a_person(self, pipeline: PipelineWithTarget) -> None:
        version = pipeline.register()
        pipeline.promote(version)
        self.fault = DeploymentFailed("it does not predict")
        assert not pipeline.run(launched_for="1").success
        assert pipeline.in_use() is None
        assert pipeline.launched() == []
        self.fault = None
        pipeline.mlflow.registry.set_tags(version, {VersionTag.REJECTED: ""})  # as `orchestrator promote` does
        dagster_later(pipeline)
        assert pipeline.run().success
        assert VersionTag.DEPLOYMENT_FAILED not in pipeline.tags(version)

    def test_a_target_that_is_away_is_tried_again_later(self, pipeline: PipelineWithTarget) -> None:
        version = pipeline.register()
        pipeline.promote(version)
        self.fault = TargetUnavailable("nobody answers")
        assert not pipeline.run(launched_for="1").success
        assert VersionTag.REJECTED not in pipeline.tags(version)
        assert pipeline.champion() == "1"
        assert pipeline.launched() == []
        dagster_later(pipeline)


def dagster_later(pipeline: PipelineWithTarget) -> None:
    """In a quarter of an hour, a run is launched."""
    found = compare(pipeline.mlflow, pipeline.rule)
    assert found is not None
    later = datetime.now(UTC) + timedelta(minutes=15)
    assert isinstance(next_run(pipeline.dagster, pipeline.rule, found, now=later), dg.RunRequest)


class TestApproval:
    @pytest.fixture
    def pipeline(self, pipeline: PipelineWithTarget) -> PipelineWithTarget:
        pipeline.when = "approval"
        return pipeline

    def test_nobody_launches_it_and_the_check_warns_once(
        self, pipeline: PipelineWithTarget, caplog: pytest.LogCaptureFixture
    ) -> None:
        version = pipeline.register()
        pipeline.promote(version)
        result = pipeline.tick()
        assert f"(in the UI: /assets/{pipeline.model}/deployed_model)" in caplog.text
        assert not result.run_requests
        assert "Awaiting approval" in (result.skip_message or "")
        [check] = result.asset_events
        assert isinstance(check, dg.AssetCheckEvaluation)
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert check.metadata["materialize"].value == f"/assets/{pipeline.model}/deployed_model"
        assert not pipeline.tick().asset_events

        assert pipeline.run(version="1").success
        result = pipeline.tick()
        assert [event.passed for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)] == [True]

    def test_the_version_that_was_approved_is_deployed_though_the_champion_is_another(
        self, pipeline: PipelineWithTarget
    ) -> None:
        first, second = pipeline.register(), pipeline.register()
        pipeline.promote(first)
        pipeline.promote(second)
        result = pipeline.run(version="1")
        assert result.success
        in_use = pipeline.in_use()
        assert in_use is not None
        assert in_use.version == "1"
        [check] = result.get_asset_check_evaluations()
        assert not check.passed

    def test_a_host_that_was_started_anew_gets_back_what_was_approved_whatever_is_the_champion(
        self, pipeline: PipelineWithTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline.promote(pipeline.register())
        assert pipeline.run().success
        served = pipeline.in_use()
        pipeline.promote(pipeline.register())
        assert not pipeline.tick().run_requests
        (pipeline.directory / "current").unlink()
        monkeypatch.setattr(DirectoryTarget, "lost", lambda _: served)
        [request] = pipeline.tick().run_requests or []
        assert request.tags[names.RunTag.MODEL_VERSION] == "1"
        assert request.run_config == {"ops": {f"{pipeline.model}__deployed_model": {"config": {"version": "1"}}}}
        assert pipeline.run(version="1").success
        assert not pipeline.tick().run_requests


class TestAliasThatIsMovedWithoutADecision:
    """By `promote`, `rollback`, a deployment that failed, or in MLflow's own pages."""

    @pytest.fixture
    def pipeline(self, pipeline: PipelineWithTarget) -> PipelineWithTarget:
        pipeline.chooses = True
        return pipeline

    @pytest.mark.parametrize("when", ["automatic", "approval"])
    def test_the_asset_shows_it_at_the_next_tick_so_that_what_is_in_use_is_out_of_date(
        self, pipeline: PipelineWithTarget, when: str
    ) -> None:
        pipeline.when = when
        pipeline.report(pipeline.tick())
        versions = [pipeline.register(0.8), pipeline.register(0.9)]
        assert pipeline.decide()
        for version in (*versions, *versions):
            pipeline.promote(version)
            pipeline.report(pipeline.tick())
            assert pipeline.shown_champions()[0] == version.version
            shown = len(pipeline.shown_champions())
            pipeline.report(pipeline.tick())
            assert len(pipeline.shown_champions()) == shown

    def test_it_does_not_make_a_decision_forgotten(self, pipeline: PipelineWithTarget) -> None:
        versions = [pipeline.register(0.8), pipeline.register(0.9)]
        trained = dg.AssetKey([pipeline.model, "trained_model"])
        metadata = {"MLflow run ID": versions[1].run_id}
        pipeline.dagster.report_runless_asset_event(dg.AssetMaterialization(trained, metadata=metadata))
        assert pipeline.decide()
        decided = decided_up_to(pipeline.dagster, pipeline.model)
        assert decided == newest_model(pipeline.dagster, pipeline.model) > 0
        for number in range(12):
            pipeline.promote(versions[number % 2])
            pipeline.report(pipeline.tick())
        assert decided_up_to(pipeline.dagster, pipeline.model) == decided

    def test_a_decision_that_is_under_way_records_it_itself(self, pipeline: PipelineWithTarget) -> None:
        versions = [pipeline.register(0.8), pipeline.register(0.9)]
        assert pipeline.decide()
        shown = pipeline.shown_champions()
        job = pipeline.definitions.resolve_job_def(names.champion_job(pipeline.model))
        run = pipeline.dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        for version in versions:
            pipeline.promote(version)
            pipeline.report(pipeline.tick())
        assert pipeline.shown_champions() == shown
        pipeline.dagster.delete_run(run.run_id)


def test_where_a_version_is_in_use_stands_at_it(pipeline: PipelineWithTarget) -> None:
    first, second = pipeline.register(), pipeline.register()
    for version, other in ((first, second), (second, first)):
        pipeline.promote(version)
        assert pipeline.run().success
        places = [value for name, value in pipeline.tags(version).items() if name.startswith(VersionTag.DEPLOYED_TO)]
        assert places == [f"directory {pipeline.directory}"]
        assert not any(name.startswith(VersionTag.DEPLOYED_TO) for name in pipeline.tags(other))


def test_an_automatic_deployment_of_another_version_is_refused(pipeline: PipelineWithTarget) -> None:
    pipeline.promote(pipeline.register())
    pipeline.register()
    result = pipeline.run(version="2")
    assert not result.success
    assert pipeline.in_use() is None
    [failure] = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "orchestrator promote" in str(failure.event_specific_data)


def test_two_ticks_launch_one_run(pipeline: PipelineWithTarget) -> None:
    pipeline.promote(pipeline.register())
    job = pipeline.definitions.resolve_job_def(names.deployment_job(pipeline.model))
    assert pipeline.launched() == ["1"]
    run = pipeline.dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert pipeline.launched() == []
    pipeline.dagster.delete_run(run.run_id)


def test_a_pipeline_without_a_deployment_gets_nothing_new() -> None:
    definitions = TrainingPipeline(name="churn").build_defs(dg.ComponentTree.for_test().load_context)
    repository = dg.Definitions.merge(definitions, shared()).get_repository_def()
    assert not [key for key in repository.asset_graph.get_all_asset_keys() if "deployed" in key.to_user_string()]
    assert not [job.name for job in repository.get_all_jobs() if "deploy" in job.name]
    assert not [sensor.name for sensor in repository.sensor_defs if "deploy" in sensor.name]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("{}", "a target is one of"),
        ('{"directory": "srv"}', "no absolute path"),
        ('{"directory": "/srv", "host": {}}', "host"),
        ('{"directory": "/srv/x", "keep": 1}', "keep"),
        ("[", "JSON"),
        ('{"folder": "/srv"}', "folder"),
        (
            '{"host": {"address": "h", "user": "u", "host_key": "x", "key_path": "k", "admin_socket": "s", '
            '"backend": "b"}}',
            "no public host key",
        ),
    ],
)
def test_a_target_that_cannot_be_meant_is_named(target: str, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        TargetBlock.parse(target)
