"""A run that chooses the champion and is killed is found dead by its lease, ended, and what it was to do is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.dagster_instance import report_failed
from orchestrator.definitions import shared
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.rules import EndRun, decide
from orchestrator.janitor.snapshot import Snapshot
from orchestrator.names import MlflowTag, RunTag
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.champion_asset import trained_model_key
from orchestrator.pipeline.models.champion_sensor import PAUSE, next_decision
from orchestrator.pipeline.models.declared import ChampionBlock, Goal
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import FaultyProxy, Request
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.real_models import RealModels
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

MODEL_VARIABLE = "TEST_CHAMPION_MODEL"
JOB = names.champion_job("churn")


def definitions() -> dg.Definitions:
    """A pipeline whose registered model the environment names."""
    block = ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model=os.environ[MODEL_VARIABLE])
    built = TrainingPipeline(name="churn", champion=block).build_defs(dg.ComponentTree.for_test().load_context)
    return dg.Definitions.merge(built, shared())


def champion_job() -> dg.JobDefinition:
    return definitions().resolve_job_def(JOB)


WORKER = f"""
import os
import dagster as dg
from {__name__} import champion_job
with dg.DagsterInstance.get() as instance:
    with dg.execute_job(dg.reconstructable(champion_job), instance, tags={{"{RunTag.DECIDES}": os.environ["NEED"]}}):
        pass
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_kill_9_while_the_champion_is_chosen(
    home: dg.DagsterInstance, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = RealModels.on(mlflow_server)
    for build, accuracy in ((1, 0.8), (2, 0.9)):
        run_id = models.train(accuracy, build=build)
        home.add_dynamic_partitions("churn_builds", [str(build)])
        home.report_runless_asset_event(
            dg.AssetMaterialization(
                trained_model_key("churn"), partition=str(build), metadata={"MLflow run ID": run_id}
            )
        )
    request = next_decision(home, "churn", now=datetime.now(UTC))
    assert isinstance(request, dg.RunRequest)
    monkeypatch.setenv(MODEL_VARIABLE, models.rule.model)
    with FaultyProxy(mlflow_server.url) as proxy:

        def sets_the_alias(asked: Request) -> bool:
            return asked.method == "POST" and "registered-models/alias" in asked.path

        for name, value in {
            **mlflow_server.env(),
            "MLFLOW_TRACKING_URI": proxy.url,
            "NEED": request.tags[RunTag.DECIDES],
        }.items():
            monkeypatch.setenv(name, value)
        with proxy.held(sets_the_alias):
            worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=Path(__file__).parents[3])
            try:
                until(lambda: any(sets_the_alias(asked) for asked in proxy.seen), seconds=180)
            finally:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    [run] = home.get_runs(dg.RunsFilter(job_name=JOB))
    assert run.status == dg.DagsterRunStatus.STARTED
    assert RunTag.LEASE_UNTIL in run.tags

    # The janitor, once its lease is over.
    repository = definitions().get_repository_def()
    seen = DagsterRuns(home, repository, pipelines=["churn"]).read(frozenset(), frozenset())
    now = datetime.now(UTC) + timedelta(minutes=5)
    snapshot = Snapshot(deployments=frozenset({"x"}), watching_since=now - timedelta(hours=1), runs=seen)
    assert [str(action) for action in decide(snapshot, datetime.now(UTC))] == []
    [action] = decide(snapshot, now)
    assert isinstance(action, EndRun)
    assert (action.run.id, action.status) == (run.run_id, "failed")
    report_failed(home, run, action.why)

    # Without Dagster's retry, the sensor tries again.
    again = next_decision(home, "churn", now=datetime.now(UTC) + 2 * PAUSE)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key != request.run_key
    assert champion_job().execute_in_process(instance=home, tags=again.tags).success
    with client(mlflow_server.url) as mlflow:
        registered = mlflow.registry.registered(models.rule.model)
        assert registered is not None
        assert registered.aliases == {"champion": "2"}
        assert [version.tags[MlflowTag.PARTITION] for version in mlflow.registry.versions(models.rule.model)] == [
            "1",
            "2",
        ]
    assert isinstance(next_decision(home, "churn", now=now), dg.SkipReason)
