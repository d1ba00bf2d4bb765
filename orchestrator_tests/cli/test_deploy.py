"""`orchestrator deploy`: any model of MLflow's to any target, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from orchestrator.cli.main import main
from orchestrator.resources.targets import DirectoryTarget
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.logged_models import finished_run, log_model
from orchestrator_tests.support.mlflow_client import client

pytestmark = pytest.mark.services  # a whole MLflow, and seconds each

PIPELINE = """\
type: orchestrator.pipeline.component.TrainingPipeline
attributes:
  name: churn
  deployment: {{when: approval, target: {{directory: {directory}}}}}
"""


@pytest.fixture
def run_id(mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of pipeline churn that has a model; DAGSTER's folder has that pipeline."""
    (tmp_path / "defs/churn").mkdir(parents=True)
    (tmp_path / "defs/churn/defs.yaml").write_text(PIPELINE.format(directory=tmp_path / "srv"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_DEFS", str(tmp_path / "defs"))
    monkeypatch.setenv("ORCHESTRATOR_DEPLOYMENT", "lab")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "1")
    experiment = mlflow_server.experiment("deploy by hand")
    tags = {"orchestrator.pipeline": "churn", "jenkins.build": "7", "mlflow.source.git.commit": "c0ffee"}
    run_id = finished_run(mlflow_server.url, experiment, metrics={}, tags=tags)
    log_model(mlflow_server.url, run_id)
    return run_id


def test_a_run_s_model_goes_to_the_target_of_a_pipeline(
    run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", f"runs:/{run_id}/model", "--target", "churn", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["deployed"]["run_id"] == run_id
    assert answer["before"] is None
    found = DirectoryTarget(tmp_path / "srv").state()
    assert found is not None
    assert (found.pipeline, found.deployment, found.build, found.commit) == ("churn", "lab", "7", "c0ffee")


def test_a_version_goes_to_a_target_that_is_given_as_json(
    run_id: str, tmp_path: Path, mlflow_server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"churn_{uuid4().hex[:8]}"
    with client(mlflow_server.url) as mlflow:
        mlflow.registry.require_registered(name)
        model = mlflow.registry.model_of(mlflow.run(run_id))
        assert model is not None
        mlflow.registry.set_alias(mlflow.registry.register(name, model, tags={}), "champion")
    target = json.dumps({"directory": str(tmp_path / "elsewhere")})
    assert main(["deploy", f"models:/{name}@champion", "--target", target]) == 0
    assert f"Deployed version 1 of {name} to directory {tmp_path}/elsewhere" in capsys.readouterr().out

    assert main(["deploy", f"models:/{name}/1", "--target", target, "--pipeline", "other"]) == 1
    assert "held by pipeline 'churn'" in capsys.readouterr().err
    assert main(["deploy", f"models:/{name}/1", "--target", target, "--pipeline", "other", "--take-over"]) == 0


@pytest.mark.parametrize(
    ("uri", "target", "sentence"),
    [
        ("models:/nobody@champion", "churn", "nobody"),
        ("s3://somewhere", "churn", "is not the address of a model"),
        ("models:/churn/1", "other", "neither JSON nor a pipeline with a `deployment`"),
        ("models:/churn/1", '{"directory": "srv"}', "no absolute path"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    run_id: str, capsys: pytest.CaptureFixture[str], uri: str, target: str, sentence: str
) -> None:
    assert main(["deploy", uri, "--target", target]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


DEPLOYED = dg.AssetKey(["churn", "deployed_model"])


@pytest.fixture
def home(run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Dagster of its own."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


def test_it_stands_in_the_history_of_the_asset_with_who_and_why(run_id: str, home: Path) -> None:
    address = f"runs:/{run_id}/model"
    assert main(["deploy", address, "--target", "churn", "--reason", "the  shop is closed"]) == 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        [record] = instance.fetch_materializations(DEPLOYED, limit=5).records
        event = record.asset_materialization
        assert event is not None
        assert event.metadata["reason"].value == "the shop is closed"
        assert "@" in str(event.metadata["deployed by"].value)
        assert event.metadata["build"].value == "7"
        assert event.tags is not None
        model = event.metadata["version"].value
        assert event.tags["dagster/data_version"] == model

    # The next one has it in its own history.
    assert main(["deploy", address, "--target", "churn"]) == 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        newest = instance.fetch_materializations(DEPLOYED, limit=5).records[0].asset_materialization
        assert newest is not None
        history = newest.metadata["history"].value
        assert [row.data["version"] for row in history.records] == [model, model]  # type: ignore[union-attr]


def test_what_failed_and_what_went_elsewhere_is_told_and_leaves_the_asset_as_it_is(
    run_id: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, elsewhere = f"runs:/{run_id}/model", json.dumps({"directory": str(tmp_path / "elsewhere")})
    assert main(["deploy", address, "--target", elsewhere]) == 0
    (tmp_path / "srv").write_text("no directory")
    assert main(["deploy", address, "--target", "churn", "--reason", "Friday"]) == 1
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert not instance.fetch_materializations(DEPLOYED, limit=5).records
        failed, other = [
            record.event_log_entry.asset_observation
            for record in instance.fetch_observations(DEPLOYED, limit=5).records
        ]
    assert failed is not None
    assert other is not None
    assert str(failed.description).endswith(" failed")
    assert failed.metadata["reason"].value == "Friday"
    assert str(tmp_path / "srv") in str(failed.metadata["error"].value)
    assert "to another target than the pipeline's" in str(other.description)


def test_without_a_dagster_it_is_done_and_says_that_no_history_has_it(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "nowhere"))
    assert main(["deploy", f"runs:/{run_id}/model", "--target", "churn"]) == 0
    assert "stands in no history" in caplog.text
