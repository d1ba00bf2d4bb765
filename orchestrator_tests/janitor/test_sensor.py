"""The janitor's tick with a real Dagster instance, a real MLflow server and moto's EC2."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest
from botocore.awsrequest import AWSResponse

from orchestrator import names
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.janitor import sensor
from orchestrator.janitor.clients import Clients, Findings
from orchestrator.janitor.retries import MOST_ASKED, FailedRun, missed_retries
from orchestrator.janitor.rules import Action, decide
from orchestrator.janitor.sensor import GAP, KEY, JanitorCursor, janitor_sensor, janitor_spec
from orchestrator.janitor.snapshot import OpenRun, Snapshot
from orchestrator.names import DagsterTag, Ec2Tag
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.pipeline.training.other_runs import marks
from orchestrator.pipeline.watched import WatchedPipelines
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, fingerprint
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.dagster_internals import (
    RegisteredCodeLocationOrigin,
    RemoteRepositoryOrigin,
    SensorExecutionData,
    get_instigation_log_records,
)
from orchestrator_tests.support.ec2_account import Account, http_answer, inject, open_account, owner
from orchestrator_tests.support.mlflow_client import client, post
from orchestrator_tests.support.run_records import failed_run, insert, statements

BUILDS = dg.DynamicPartitionsDefinition(name="iris_builds")


def repository(**settings: Mapping[str, str]) -> dg.RepositoryDefinition:
    """A code location with a pipeline of each name, whose settings differ from the environment in this."""

    def model(name: str) -> dg.AssetsDefinition:
        @dg.asset(key=[name, "trained_model"], partitions_def=BUILDS)
        def trained_model() -> None: ...

        return trained_model

    @dg.asset
    def other() -> None: ...

    models = {name: model(name) for name in settings}
    watched = WatchedPipelines(tuple(SettingsSource(pipeline=name, values=values) for name, values in settings.items()))
    return dg.Definitions(
        assets=[*models.values(), other, janitor_spec],
        jobs=[dg.define_asset_job(f"{name}_training", selection=[models[name]]) for name in models],
        sensors=[janitor_sensor(lambda: watched)],
    ).get_repository_def()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    retries = {"run_retries": {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("dagster")), overrides=retries) as instance:
        yield instance


@dataclass
class Site:
    """One installation, as the janitor finds it."""

    instance: dg.DagsterInstance
    account: Account
    ec2: Ec2
    mlflow: Mlflow
    experiment: str
    repository: dg.RepositoryDefinition
    cursor: str | None = None
    said: list[str] = field(default_factory=list)

    def run(self, status: str, *, partition: str = "7", job: str = "iris_training", **more: Any) -> str:
        run = dg.DagsterRun(
            job_name=job,
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.NOT_STARTED,
            **{"tags": {"dagster/partition": partition}, **more},
        )
        self.instance.add_run(run)
        if status in ("STARTED", "CANCELING", "CANCELED", "FAILURE"):
            self.event(run, dg.DagsterEventType.RUN_START)
        if status == "CANCELING":
            self.instance.report_run_canceling(run)
        if status == "CANCELED":
            self.instance.report_run_canceled(run)
        if status == "FAILURE":
            self.instance.report_run_failed(run)
        return run.run_id

    def event(self, run: dg.DagsterRun, kind: dg.DagsterEventType) -> None:
        event = dg.DagsterEvent(event_type_value=kind.value, job_name=run.job_name, message="")
        self.instance.report_dagster_event(event, run_id=run.run_id)

    def launch(self, run: str, *, pipeline: str = "iris", partition: str = "7", mlflow_run: str = "none") -> str:
        leased = owner(dagster_run=run, pipeline=pipeline, partition=partition, mlflow_run=mlflow_run)
        return self.ec2.launch(leased, attempt=str(uuid.uuid4())).id

    def open_run(self, run: str, *, partition: str = "7") -> str:
        tags = {"orchestrator.pipeline": "iris", "orchestrator.partition": partition, "dagster_run_id": run}
        return self.mlflow.create_run(self.experiment, name="iris", tags=tags).id

    def tick(
        self,
        *,
        later: timedelta | None = None,
        sensor: dg.SensorDefinition | None = None,
        log_key: list[str] | None = None,
    ) -> SensorExecutionData:
        """A tick; `later` shifts what the cursor says into the past, as if so much time had passed."""
        if later:
            self.cursor = JanitorCursor(since=datetime.now(UTC) - later, last=datetime.now(UTC)).dump()
        with dg.SensorEvaluationContext(
            instance_ref=self.instance.get_ref(),
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            log_key=log_key,
            instance=self.instance,
            repository_def=self.repository,
            sensor_name="janitor",
            code_location_origin=RegisteredCodeLocationOrigin("here"),
        ) as context:
            data = (sensor or self.repository.get_sensor_def(names.JANITOR)).evaluate_tick(context)
        self.cursor = data.cursor
        self.said.append(data.skip_message or "")
        return data

    def status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value

    def tags(self, run_id: str) -> Mapping[str, str]:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.tags


@pytest.fixture
def site(
    storage: dg.DagsterInstance, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Site]:
    storage.wipe()
    experiment = post(mlflow_server.url, "experiments/create", name=str(uuid.uuid4()))["experiment_id"]
    with open_account(monkeypatch) as account, client(mlflow_server.url) as mlflow:
        for name, value in {
            "AMI_ID": account.ami,
            "KEY_PAIR_NAME": "trainer",
            "SECURITY_GROUP_ID": account.security_group,
            "ORCHESTRATOR_DEPLOYMENT": "ours",
            "MLFLOW_TRACKING_URI": mlflow_server.url,
            "MLFLOW_EXPERIMENT_ID": experiment,
        }.items():
            monkeypatch.setenv(name, value)
        yield Site(
            instance=storage,
            account=account,
            ec2=account.ec2(),
            mlflow=mlflow,
            experiment=experiment,
            repository=repository(iris={}),
        )


def expired() -> dict[str, str]:
    return {"dagster/partition": "7", names.RunTag.LEASE_UNTIL: (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}


def from_the_asset_page(pipeline: str) -> dict[str, Any]:
    return {"job": "__ASSET_JOB", "asset_selection": frozenset({dg.AssetKey([pipeline, "trained_model"])})}


def of_location(name: str) -> dict[str, Any]:
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(name), "__repository__")
    return {"remote_job_origin": repository.get_job_origin("iris_training")}


def long_ago(site: Site, run: str) -> None:
    """Let a run have begun an hour ago."""
    record = site.instance.get_run_record_by_id(run)
    assert record is not None
    started = datetime.now(UTC) - timedelta(hours=1)
    event = dg.DagsterEvent(event_type_value="PIPELINE_START", job_name="iris_training", message="")
    site.instance.run_storage.handle_run_event(run, event, started)


def test_a_live_attempt_keeps_everything_that_it_has(site: Site) -> None:
    run = site.run("STARTED")
    opened = site.open_run(run)
    launched = site.launch(run, mlflow_run=opened)
    data = site.tick(later=timedelta(minutes=5))
    assert data.skip_message == "1 instance, 1 live attempt, 1 open MLflow run; nothing to do"
    assert not data.asset_events
    assert site.account.alive() == [launched]
    assert site.mlflow.run(opened).status == "RUNNING"


def test_what_a_cancelled_run_left_is_ended_and_reported(site: Site) -> None:
    run = site.run("CANCELED")
    opened = site.open_run(run)
    launched = site.launch(run, mlflow_run=opened)
    (observation,) = site.tick().asset_events
    assert isinstance(observation, dg.AssetObservation)
    assert observation.asset_key == KEY
    assert observation.metadata["done"].value == 2
    assert launched in str(observation.metadata["actions"].value)
    assert site.account.alive() == []
    closed = site.mlflow.run(opened)
    assert closed.status == "KILLED"
    assert run in closed.tags[names.MlflowTag.REASON]
    assert not site.tick().asset_events


def test_what_the_training_of_a_cancelled_run_made_is_ended_with_it(site: Site) -> None:
    run = site.run("CANCELED")
    root = site.open_run(run)
    marked = marks(site.mlflow.run(root).tags, root=root)
    trial = site.mlflow.create_run(site.experiment, name="trial", tags=marked).id

    def child(parent: str) -> str:
        # As `mlflow.run` and `MlflowClient` make them: with no mark of ours.
        return site.mlflow.create_run(site.experiment, name="step", tags={"mlflow.parentRunId": parent}).id

    step = child(root)
    fold, ended, another = child(step), child(trial), child("f" * 32)
    site.mlflow.finish(ended, "FINISHED")
    site.tick()
    for run_id in (root, trial, step, fold):
        assert site.mlflow.run(run_id).status == "KILLED"
    assert [site.mlflow.run(run_id).status for run_id in (ended, another)] == ["FINISHED", "RUNNING"]


def test_a_run_whose_worker_is_gone_fails_and_dagster_will_retry_it(site: Site) -> None:
    run = site.run("STARTED", tags=expired())
    long_ago(site, run)
    launched = site.launch(run)
    site.tick(later=timedelta(minutes=1))
    record = site.instance.get_run_by_id(run)
    assert record is not None
    assert record.status == dg.DagsterRunStatus.FAILURE
    assert record.tags["dagster/will_retry"] == "true"
    assert "its worker is gone" in str(site.instance.all_logs(run)[-1].message)
    site.tick()
    assert site.account.alive() == [launched]  # for the retry


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("5", "6"), ("-5", "1"), ("soon", "1")])
def test_the_retry_of_a_dead_run_comes_before_the_rest_of_its_backfill(
    site: Site, before: str | None, after: str
) -> None:
    run = site.run("STARTED", tags={**expired(), **({DagsterTag.PRIORITY: before} if before else {})})
    long_ago(site, run)
    site.tick(later=timedelta(minutes=1))
    assert site.status(run) == "FAILURE"
    assert site.tags(run)[DagsterTag.PRIORITY] == after


def test_a_dead_run_that_has_trained_says_which_mlflow_run_holds_its_model(site: Site) -> None:
    run = site.run("STARTED", tags={**expired(), names.RunTag.TRAINED: "m-7"})
    long_ago(site, run)
    site.tick(later=timedelta(minutes=1))
    assert "MLflow run m-7 holds its model" in failures(site, run)[-1]


@pytest.mark.parametrize(("trained", "told"), [("m-6", False), ("m-7", True)])
def test_a_dead_run_does_not_claim_the_model_of_the_run_that_it_was_copied_from(
    site: Site, trained: str, told: bool
) -> None:
    parent = site.run("CANCELED", tags={"dagster/partition": "7", names.RunTag.TRAINED: "m-6"})
    run = site.run(
        "STARTED", parent_run_id=parent, root_run_id=parent, tags={**expired(), names.RunTag.TRAINED: trained}
    )
    long_ago(site, run)
    site.tick(later=timedelta(minutes=1))
    assert ("holds its model" in failures(site, run)[-1]) is told


def gave_up(site: Site, run: str) -> None:
    """What Dagster writes when its code server does not answer while it retries a run."""
    site.instance.add_run_tags(run, {"dagster/will_retry": "false"})


def failures(site: Site, run: str) -> list[str]:
    records = site.instance.all_logs(run, of_type=dg.DagsterEventType.RUN_FAILURE)
    return [record.message for record in records]


def test_a_retry_that_dagster_gave_up_is_asked_for_once_more(site: Site) -> None:
    run = site.run("FAILURE")
    launched = site.launch(run)
    site.tick()
    assert len(failures(site, run)) == 1
    gave_up(site, run)
    data = site.tick()
    assert f"have Dagster run {run} retried" in (data.skip_message or "")
    assert site.tags(run)["dagster/will_retry"] == "true"
    assert len(failures(site, run)) == 2
    assert site.account.alive() == [launched]
    site.tick()
    assert len(failures(site, run)) == 2


def test_a_retry_is_not_asked_for_without_end(site: Site) -> None:
    run = site.run("FAILURE")
    site.instance.add_run_tags(run, {names.RunTag.RETRIES_ASKED: str(MOST_ASKED - 1)})
    for _ in range(2):
        gave_up(site, run)
        site.tick()
    assert len(failures(site, run)) == 2


def test_a_run_that_somebody_launched_since_is_instead_of_the_retry_that_was_given_up(site: Site) -> None:
    run = site.run("FAILURE")
    site.run("QUEUED")
    gave_up(site, run)
    site.tick()
    assert len(failures(site, run)) == 1


def test_a_run_of_another_pipelines_build_of_that_number_is_not_instead_of_it(site: Site) -> None:
    site.repository = repository(iris={}, fraud={})
    run = site.run("FAILURE")
    site.run("QUEUED", **from_the_asset_page("fraud"))
    gave_up(site, run)
    site.tick()
    assert len(failures(site, run)) == 2


@pytest.mark.parametrize(
    ("before", "after"), [({}, "1"), ({DagsterTag.PRIORITY: "5"}, "5"), ({DagsterTag.PRIORITY: "-5"}, "-5")]
)
def test_a_retry_that_is_asked_for_once_more_comes_before_the_rest_of_a_backfill_unless_somebody_said_otherwise(
    site: Site, before: dict[str, str], after: str
) -> None:
    run = site.run("FAILURE", tags={"dagster/partition": "7", **before})
    gave_up(site, run)
    site.tick()
    assert site.tags(run)[DagsterTag.PRIORITY] == after


def test_a_training_that_failed_is_not_retried_by_the_janitor_either(site: Site) -> None:
    run = site.run("FAILURE", tags={"dagster/partition": "7", "dagster/failure_reason": "STEP_FAILURE"})
    gave_up(site, run)
    site.tick()
    assert len(failures(site, run)) == 1


def test_the_retry_of_a_dead_run_is_not_ended_by_its_parents_lease(site: Site) -> None:
    run = site.run("STARTED", tags=expired())
    site.tick(later=timedelta(minutes=1))
    assert site.status(run) == "STARTED"


def test_a_run_whose_lease_ended_while_the_host_was_asleep_is_given_time_to_renew_it(site: Site) -> None:
    run = site.run("STARTED", tags=expired())
    long_ago(site, run)
    now = datetime.now(UTC)
    site.cursor = JanitorCursor(since=now - timedelta(hours=1), last=now - timedelta(seconds=125)).dump()
    site.tick()
    assert site.status(run) == "STARTED"
    site.cursor = JanitorCursor(since=now - timedelta(hours=1), last=now - timedelta(seconds=62)).dump()
    site.tick()
    assert site.status(run) == "FAILURE"


def test_a_dead_run_that_was_being_cancelled_is_cancelled(site: Site) -> None:
    run = site.run("CANCELING", tags=expired())
    long_ago(site, run)
    record = site.instance.get_run_by_id(run)
    assert record is not None
    site.instance.report_run_canceling(record)
    launched = site.launch(run)
    site.tick(later=timedelta(minutes=1))
    assert site.status(run) == "CANCELED"
    assert site.account.alive() == [launched]
    site.tick()
    assert site.account.alive() == []


def test_runs_that_train_nothing_are_none_of_its_business(site: Site) -> None:
    run = site.run("STARTED", job="__ASSET_JOB", asset_selection=frozenset({dg.AssetKey("other")}))
    long_ago(site, run)
    site.tick(later=timedelta(minutes=5))
    assert site.status(run) == "STARTED"


def test_a_run_from_the_asset_page_is_recognised(site: Site) -> None:
    run = site.run("STARTED", **from_the_asset_page("iris"), **of_location("here"))
    long_ago(site, run)
    site.tick(later=timedelta(minutes=5))
    assert site.status(run) == "FAILURE"


def test_a_re_execution_that_has_got_past_the_training_needs_no_lease(site: Site) -> None:
    selected: dict[str, Any] = {
        "asset_selection": frozenset({dg.AssetKey(["iris", "trained_model"]), dg.AssetKey("report")})
    }
    past = site.run("STARTED", job="__ASSET_JOB", **selected, step_keys_to_execute=["report"])
    recording = site.run(
        "STARTED", job="__ASSET_JOB", **selected, partition="8", step_keys_to_execute=["iris__trained_model.record"]
    )
    for run in (past, recording):
        long_ago(site, run)
    site.tick(later=timedelta(minutes=5))
    assert site.status(past) == "STARTED"
    assert site.status(recording) == "FAILURE"


def test_another_code_locations_model_is_trained_without_a_lease_and_left_alone(site: Site) -> None:
    run = site.run("STARTED", **from_the_asset_page("churn"))
    long_ago(site, run)
    failed = site.run("FAILURE", partition="8", **from_the_asset_page("churn"))
    gave_up(site, failed)
    data = site.tick(later=timedelta(minutes=5))
    assert data.skip_message == "0 instances, 0 live attempts, 0 open MLflow runs; nothing to do"
    assert site.status(run) == "STARTED"
    assert len(failures(site, failed)) == 1


@pytest.mark.parametrize("how", [{}, from_the_asset_page("iris")])
def test_so_is_a_model_of_the_same_name(site: Site, how: dict[str, Any]) -> None:
    run = site.run("STARTED", **how, **of_location("elsewhere"))
    long_ago(site, run)
    site.tick(later=timedelta(minutes=5))
    assert site.status(run) == "STARTED"


def test_a_dead_run_is_ended_though_its_code_location_had_another_name_then(site: Site) -> None:
    run = site.run("STARTED", tags=expired(), **of_location("elsewhere"))
    long_ago(site, run)
    site.tick(later=timedelta(minutes=5))
    assert site.status(run) == "FAILURE"


def test_another_code_location_of_this_deployment_may_adopt_its_instance(site: Site) -> None:
    launched = site.launch(site.run("CANCELED", **from_the_asset_page("churn")), pipeline="churn")
    site.run("NOT_STARTED", **from_the_asset_page("churn"), **of_location("elsewhere"))
    site.tick()
    assert site.account.alive() == [launched]


def test_a_queued_run_of_another_code_location_may_adopt_the_instance(site: Site) -> None:
    launched = site.launch(site.run("CANCELED"))
    site.run("NOT_STARTED", job="nightly")
    site.tick()
    assert site.account.alive() == [launched]


def test_a_retry_in_the_queue_keeps_the_instance_of_its_parent(site: Site) -> None:
    parent = site.run("FAILURE")
    retry = site.run("NOT_STARTED")
    site.instance.add_run_tags(parent, {"dagster/auto_retry_run_id": retry})
    launched = site.launch(parent)
    site.tick()
    assert site.account.alive() == [launched]


def test_another_deployments_instances_are_never_touched(site: Site) -> None:
    theirs = site.account.ec2(deployment="theirs").launch(owner(dagster_run=site.run("CANCELED")), attempt="1")
    site.tick()
    assert site.account.alive() == [theirs.id]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANITOR_DRY_RUN", "true")
    run = site.run("CANCELED")
    opened, launched = site.open_run(run), site.launch(run)
    (observation,) = site.tick().asset_events
    assert observation.metadata["dry run"].value is True
    assert f"terminate instance {launched}" in site.said[-1]
    assert site.account.alive() == [launched]
    assert site.mlflow.run(opened).status == "RUNNING"


def test_an_outage_of_mlflow_does_not_keep_an_instance_alive(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "JANITOR_MLFLOW", retry.JANITOR_MLFLOW.with_total(0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    site.launch(site.run("CANCELED"))
    site.tick()
    assert site.account.alive() == []
    assert "not all could be looked at: MLflow at http://127.0.0.1:1 does not answer" in site.said[-1]


def test_an_outage_of_aws_does_not_keep_an_mlflow_run_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "JANITOR_EC2", retry.EC2_ONE_TRY)
    opened = site.open_run(site.run("CANCELED"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    site.tick()
    assert site.mlflow.run(opened).status == "KILLED"


def test_a_tick_that_sees_nothing_at_all_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "JANITOR_EC2", retry.EC2_ONE_TRY)
    monkeypatch.setattr(retry, "JANITOR_MLFLOW", retry.JANITOR_MLFLOW.with_total(0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(OrchestratorError, match="the janitor sees nothing"):
        site.tick()


def test_what_fails_does_not_keep_the_rest_from_being_done(site: Site) -> None:
    run = site.run("CANCELED")
    opened, protected, plain = site.open_run(run), site.launch(run), site.launch(run)
    site.account.aws.modify_instance_attribute(InstanceId=protected, DisableApiTermination={"Value": True})
    (observation,) = site.tick().asset_events
    assert observation.metadata["failed"].value == 1
    assert observation.metadata["done"].value == 2
    assert site.account.alive() == [protected]
    assert plain != protected
    assert site.mlflow.run(opened).status == "KILLED"


def test_an_error_of_dagsters_storage_does_not_keep_the_rest_from_being_done(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = site.run("STARTED", tags=expired())
    long_ago(site, run)
    site.launch(site.run("CANCELED", partition="8"), partition="8")

    def locked(*_: object, **__: object) -> None:
        raise RuntimeError("database is locked")

    monkeypatch.setattr(site.instance, "report_run_failed", locked)
    (observation,) = site.tick(later=timedelta(minutes=1)).asset_events
    assert observation.metadata["failed"].value == 1
    assert "database is locked" in site.said[-1]
    assert site.account.alive() == []


def test_an_mlflow_run_that_ended_after_the_look_keeps_its_status(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = site.open_run(site.run("CANCELED"))

    def decide_and_finish(snapshot: Snapshot, now: datetime) -> list[Action]:
        if snapshot.open_runs:
            site.mlflow.finish(opened, "FINISHED")
        return decide(snapshot, now)

    monkeypatch.setattr("orchestrator.janitor.sensor.decide", decide_and_finish)
    site.tick()
    assert "not needed any more" in site.said[-1]
    assert site.mlflow.run(opened).status == "FINISHED"


def test_what_does_not_fit_into_a_tick_is_left_for_the_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = site.launch(site.run("CANCELED"))
    monkeypatch.setattr("orchestrator.janitor.sensor._ACT_SECONDS", -1.0)
    site.tick()
    assert "left for the next tick" in site.said[-1]
    assert site.account.alive() == [launched]


def test_a_run_that_begins_after_the_look_keeps_its_instance(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = site.launch(site.run("CANCELED"))
    began: list[str] = []

    def decide_and_begin(*args: Any) -> Any:
        decided = decide(*args)
        if not began:
            began.append(site.run("NOT_STARTED"))
        return decided

    monkeypatch.setattr("orchestrator.janitor.sensor.decide", decide_and_begin)
    site.tick()
    assert "not needed any more" in site.said[-1]
    assert site.account.alive() == [launched]


def thousand_instances(run: str) -> AWSResponse:
    """A page of DescribeInstances, as AWS words it; moto takes half a minute to make so many."""
    tags = {
        Ec2Tag.DEPLOYMENT: "ours",
        Ec2Tag.PIPELINE: "iris",
        Ec2Tag.PARTITION: "7",
        Ec2Tag.DAGSTER_RUN: run,
    }
    tag_set = "".join(f"<item><key>{key}</key><value>{value}</value></item>" for key, value in tags.items())
    items = "".join(
        f"<item><instanceId>i-{one}</instanceId><instanceState><name>running</name></instanceState>"
        f"<instanceType>t3.medium</instanceType><launchTime>2031-05-17T08:30:00Z</launchTime>"
        f"<tagSet>{tag_set}</tagSet></item>"
        for one in range(1000)
    )
    return http_answer(
        '<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item>'
        f"<instancesSet>{items}</instancesSet></item></reservationSet></DescribeInstancesResponse>"
    )


def test_a_thousand_instances_cost_one_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site.run("STARTED")
    sent = inject(site.ec2, "DescribeInstances", lambda: thousand_instances(run))
    site.account.requests.clear()
    monkeypatch.setattr("orchestrator.janitor.clients.Ec2", lambda *_, **__: site.ec2)
    site.tick()
    assert site.said[-1] == "1000 instances, 1 live attempt, 0 open MLflow runs; nothing to do"
    assert len(sent) == 1
    assert len(site.account.requests) == 1


def test_a_pipeline_without_settings_does_not_hide_the_others(site: Site) -> None:
    site.repository = repository(iris={}, fraud={"SSH_PORT": "22", "MLFLOW_EXPERIMENT_ID": "", "AMI_ID": ""})
    site.launch(site.run("CANCELED"))
    site.tick()
    assert site.account.alive() == []
    assert "the settings of pipeline 'fraud' cannot be used: AMI_ID is not set" in site.said[-1]


def test_with_no_settings_at_all_it_says_what_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMI_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name)
    site.tick()
    assert "nothing to watch" in site.said[-1]
    assert "AMI_ID is not set" in site.said[-1]
    assert "MLFLOW_TRACKING_URI is not set" in site.said[-1]


def test_a_dry_run_setting_that_is_no_yes_or_no_stops_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANITOR_DRY_RUN", "perhaps")
    with pytest.raises(SettingsError, match="JANITOR_DRY_RUN"):
        site.tick()


def test_the_watch_begins_anew_after_a_gap_or_a_cursor_that_is_none() -> None:
    now = datetime(2031, 5, 17, 8, 30, tzinfo=UTC)
    begun = JanitorCursor(since=now - timedelta(hours=1), last=now - GAP).dump()
    assert JanitorCursor.at(now, begun).since == now - timedelta(hours=1)
    assert JanitorCursor.at(now, begun).before == now - GAP
    assert JanitorCursor.at(now, None).before is None
    assert JanitorCursor.at(now + timedelta(seconds=1), begun).since == now + timedelta(seconds=1)
    assert JanitorCursor.at(now, "set by hand").since == now
    assert JanitorCursor.at(now, "[]").since == now
    assert JanitorCursor.at(now, '{"since": "2031-05-17", "last": "2031-05-17"}').since == now


def failures_of_others_and_ours(site: Site, *, others: int, ours: int) -> None:
    """Runs that failed ten minutes ago because their workers died; ours have been retried as often as Dagster does."""
    first = [failed_run("iris_training", partition=str(number)) for number in range(ours // 2)]
    retries = [
        failed_run(
            "iris_training",
            partition=run.tags["dagster/partition"],
            parent_run_id=run.run_id,
            root_run_id=run.run_id,
            tags={"dagster/root_run_id": run.run_id, "dagster/parent_run_id": run.run_id},
        )
        for run in first
    ]
    insert(site.instance, [*first, *retries], ended=timedelta(minutes=10))
    insert(
        site.instance,
        [failed_run("nightly_report", partition="2031-05-17") for _ in range(others)],
        ended=timedelta(minutes=10),
    )


@dataclass(frozen=True)
class Effort:
    """What a tick asked the database, and which failures it judged."""

    statements: int
    judged: list[int]


def effort_of_a_tick(site: Site, monkeypatch: pytest.MonkeyPatch) -> Effort:
    judged: list[int] = []

    def judge(failures: Sequence[FailedRun], *args: Any, **options: Any) -> frozenset[str]:
        judged.append(len(failures))
        return missed_retries(failures, *args, **options)

    with monkeypatch.context() as patch, statements() as sent:
        patch.setattr("orchestrator.janitor.dagster_runs.missed_retries", judge)
        site.tick()
    return Effort(len([one for one in sent if one.lstrip().startswith("SELECT")]), judged)


def test_thousands_of_failures_cost_no_more_questions_than_a_few_and_only_ours_are_judged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures_of_others_and_ours(site, others=10, ours=4)
    few = effort_of_a_tick(site, monkeypatch)
    site.instance.wipe()
    failures_of_others_and_ours(site, others=5000, ours=1000)
    many = effort_of_a_tick(site, monkeypatch)
    assert site.said == ["0 instances, 0 live attempts, 0 open MLflow runs; nothing to do"] * 2
    assert (few.judged, many.judged) == ([4], [1000])
    assert many.statements == few.statements <= 10


def test_so_do_thousands_that_somebody_elses_asset_page_launched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"asset_selection": frozenset({dg.AssetKey(["churn", "trained_model"])}), **of_location("elsewhere")}
    others = [failed_run("__ASSET_JOB", partition="7", **page) for _ in range(300)]
    insert(site.instance, others, ended=timedelta(minutes=10))
    effort = effort_of_a_tick(site, monkeypatch)
    assert effort.judged == [0]
    assert effort.statements <= 6


def test_an_action_is_re_checked_by_its_own_runs_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    failures_of_others_and_ours(site, others=300, ours=100)
    given_up = [site.run("FAILURE", partition=f"given up {number}") for number in range(3)]
    for run in given_up:
        gave_up(site, run)
    launched = site.launch(site.run("CANCELED", partition="left"), partition="left")
    effort = effort_of_a_tick(site, monkeypatch)
    assert effort.judged == [103, 1, 1, 1, 0]  # the look; then each retry; then the instance, whose run was cancelled
    assert all(len(failures(site, run)) == 2 for run in given_up)
    assert launched not in site.account.alive()


def test_what_is_seen_of_ec2_is_acted_on_before_mlflow_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.launch(site.run("CANCELED"))
    dead = site.run("STARTED", tags={**expired(), "dagster/partition": "8"})
    long_ago(site, dead)
    found: list[tuple[list[str], str]] = []

    def open_runs(self: Clients) -> Findings[OpenRun]:
        found.append((site.account.alive(), site.status(dead)))
        return Findings()

    monkeypatch.setattr(Clients, "open_runs", open_runs)
    site.tick(later=timedelta(minutes=1))
    assert found == [([], "FAILURE")]


def test_mlflow_is_left_for_the_next_tick_when_instances_took_all_the_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = site.run("CANCELED")
    opened = site.open_run(run)
    site.launch(run)
    with monkeypatch.context() as patch:
        patch.setattr(sensor, "_ASK_MLFLOW_SECONDS", -1.0)
        site.tick()
    assert "MLflow was not asked: there was no time left in this tick" in site.said[-1]
    assert site.account.alive() == []
    assert site.mlflow.run(opened).status == "RUNNING"
    site.tick()
    assert site.mlflow.run(opened).status == "KILLED"


def test_the_ticks_own_log_shows_what_was_done_and_what_went_wrong(site: Site) -> None:
    run = site.run("CANCELED")
    protected, plain = site.launch(run), site.launch(run)
    site.account.aws.modify_instance_attribute(InstanceId=protected, DisableApiTermination={"Value": True})
    key = ["janitor", "tick"]
    site.tick(log_key=key)
    lines = [record["msg"] for record in get_instigation_log_records(site.instance, key)]
    refused, done = sorted(lines)  # EC2 lists instances in no order
    assert refused.startswith(f"Could not terminate instance {protected} (iris 7): ")
    why = f"its run {run} ended as CANCELED, and no other run may take it over"
    assert done == f"Terminated instance {plain} (iris 7): {why}"


# ---- A pipeline whose defs.yaml cannot be read


def broken(*names: str) -> dg.SensorDefinition:
    """The janitor of a code location whose only pipelines are these."""
    return janitor_sensor(lambda: WatchedPipelines(broken=frozenset(names)))


@pytest.mark.parametrize("status", ["STARTED", "CANCELED", "FAILURE"])
def test_the_instance_of_a_broken_pipeline_is_left_alone(site: Site, status: str) -> None:
    launched = site.launch(site.run(status, job="churn_training"), pipeline="churn")
    site.tick(sensor=broken("churn"))
    assert site.account.alive() == [launched]
    assert site.said[-1].startswith("1 instance, ")
    assert site.said[-1].endswith("; nothing to do; cannot be read: churn")


def test_but_not_past_its_deadline_whatever_its_run_does(site: Site) -> None:
    launched = site.launch(site.run("STARTED", job="churn_training"), pipeline="churn")
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    site.account.aws.create_tags(Resources=[launched], Tags=[{"Key": Ec2Tag.EXPIRES_AT, "Value": past}])
    site.tick(sensor=broken("churn"))
    assert site.account.alive() == []
    assert "the defs.yaml of pipeline churn cannot be read" in site.said[-1]


def test_a_janitor_with_broken_pipelines_only_watches_the_deployment_of_the_environment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AMI_ID", "KEY_PAIR_NAME", "SECURITY_GROUP_ID"):  # perhaps each pipeline's own
        monkeypatch.delenv(name)
    run = site.run("CANCELED", job="churn_training")
    ours = site.launch(run, pipeline="churn")
    theirs = site.account.ec2(deployment="theirs").launch(owner(dagster_run=run, pipeline="churn"), attempt="1").id
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    tags = [{"Key": Ec2Tag.EXPIRES_AT, "Value": past}]
    site.account.aws.create_tags(Resources=[ours, theirs], Tags=tags)
    site.tick(sensor=broken("churn"))
    assert site.account.alive() == [theirs]


def test_with_broken_pipelines_only_and_a_wrong_environment_it_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READY_MINUTES", "soon")
    site.tick(sensor=broken("churn"))
    assert "nothing to watch" in site.said[-1]
    assert "READY_MINUTES='soon' is wrong" in site.said[-1]


def test_a_broken_pipeline_does_not_keep_the_others_from_being_watched(site: Site) -> None:
    def pipelines() -> WatchedPipelines:
        return WatchedPipelines(settings=(SettingsSource(pipeline="iris"),), broken=frozenset({"churn"}))

    site.launch(site.run("CANCELED"))
    kept = site.launch(site.run("CANCELED", job="churn_training"), pipeline="churn")
    site.tick(sensor=janitor_sensor(pipelines))
    assert site.account.alive() == [kept]


def test_a_missed_retry_of_a_broken_pipeline_waits_until_it_is_mended(site: Site) -> None:
    run = site.run("FAILURE", job="churn_training", tags=expired())
    gave_up(site, run)
    site.tick(sensor=broken("churn"))
    assert len(failures(site, run)) == 1
    site.repository = repository(churn={})
    site.tick()
    assert len(failures(site, run)) == 2


@pytest.mark.parametrize("ended_as", ["KILLED", "FAILED"])
def test_a_run_that_was_ended_stays_so_though_a_process_that_lived_on_calls_it_finished(
    site: Site, ended_as: Literal["KILLED", "FAILED"]
) -> None:
    opened = site.open_run(site.run("CANCELED"))
    site.mlflow.finish(opened, ended_as, reason="the Dagster run was cancelled")
    site.mlflow.finish(opened, "FINISHED")  # without a reason: as a script does it
    site.tick()
    run = site.mlflow.run(opened)
    assert run.status == ended_as
    assert "a process that lived on called it FINISHED" in run.tags[names.MlflowTag.REASON]
    assert not site.tick().asset_events, "once is enough"


def test_a_run_that_was_finished_with_a_reason_or_taken_over_is_left_alone(site: Site) -> None:
    owner = site.run("CANCELED")
    finished, adopted = site.open_run(owner), site.open_run(owner)
    for opened in (finished, adopted):
        site.mlflow.finish(opened, "KILLED", reason="the Dagster run was cancelled")
    site.mlflow.finish(finished, "FINISHED", reason="the training process exited 0")
    site.mlflow.set_tags(adopted, {names.MlflowTag.ENDED_AS: ""})
    site.mlflow.finish(adopted, "FINISHED")
    site.tick()
    assert [site.mlflow.run(opened).status for opened in (finished, adopted)] == ["FINISHED", "FINISHED"]


# ---- Late


def launched_with(site: Site, run: str, launched: str, *, minutes: float, ago: timedelta) -> None:
    """Keep on a run what it has launched, so long ago."""
    host_key = fingerprint(site.ec2.describe(launched).host_key)
    expires_at = datetime.now(UTC) - ago + timedelta(minutes=minutes)
    record = LaunchRecord(
        instance_id=launched, host_key=host_key, mlflow_run="m", expires_at=expires_at, max_minutes=minutes
    )
    site.instance.add_run_tags(run, record.tags())


@pytest.mark.parametrize("hidden", [False, True], ids=["with its tags", "without any tag"])
def test_a_late_instance_is_ended_under_its_live_run_which_is_told(site: Site, hidden: bool) -> None:
    run = site.run("STARTED")
    launched = site.launch(run)
    launched_with(site, run, launched, minutes=5, ago=timedelta(minutes=8))
    if hidden:
        tags = [{"Key": key} for key in site.ec2.describe(launched).tags]
        site.account.aws.delete_tags(Resources=[launched], Tags=tags)
    site.tick()
    assert site.account.alive() == []
    assert "it ran past its deadline of 5 min" in site.said[-1]
    assert site.status(run) == "STARTED", "its worker says why itself"
    assert names.RunTag.LATE in site.tags(run)


def test_a_late_instance_whose_worker_is_dead_makes_its_run_red_and_is_not_retried(site: Site) -> None:
    run = site.run("STARTED", tags=expired())
    long_ago(site, run)
    launched_with(site, run, site.launch(run), minutes=5, ago=timedelta(minutes=8))
    site.tick(later=timedelta(minutes=1))
    assert site.account.alive() == []
    assert site.status(run) == "FAILURE"
    (failure,) = failures(site, run)
    assert "its training ran past its deadline of 5 min" in failure
    assert site.tags(run)[DagsterTag.FAILURE_REASON] == "STEP_FAILURE"


def test_a_poisoned_mlflow_run_keeps_no_instance_alive(site: Site) -> None:
    run = site.run("CANCELED")
    site.launch(run)
    late = site.run("STARTED", partition="8")
    launched_with(site, late, site.launch(late, partition="8"), minutes=5, ago=timedelta(minutes=8))
    poison = [{"key": "orchestrator.pipeline", "value": "iris"}]
    uri = SettingsSource().read(MlflowSettings).tracking_uri
    post(uri, "runs/create", experiment_id=site.experiment, start_time=9 * 10**18, tags=poison)
    site.tick()
    assert site.account.alive() == []
