"""`orchestrator deploy`: any model of MLflow's to any target, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

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
