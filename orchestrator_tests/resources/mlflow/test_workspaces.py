"""Workspaces of an MLflow server, with a real one that has them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from orchestrator.errors import MlflowError, MlflowNotFound, SettingsError
from orchestrator.resources.mlflow import Mlflow
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.mlflow_client import client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("workspaces"), options=["--enable-workspaces"]) as running:
        for name in ("team-a", "team-b"):
            post(running, "api/3.0/mlflow/workspaces", name=name)
        yield running


def post(server: MlflowServer, path: str, *, workspace: str = "", **fields: Any) -> Any:
    headers = {"X-MLFLOW-WORKSPACE": workspace} if workspace else {}
    answer = requests.post(f"{server.url}/{path}", json=fields, headers=headers, timeout=30)
    answer.raise_for_status()
    return answer.json()


@pytest.fixture(scope="module")
def experiment(server: MlflowServer) -> str:
    """One in team-a."""
    made = post(server, "api/2.0/mlflow/experiments/create", workspace="team-a", name="fraud")
    return str(made["experiment_id"])


def full_life(mlflow: Mlflow, experiment: str) -> str:
    run = mlflow.create_run(experiment, name="churn 12", tags={"jenkins.build": "12"})
    mlflow.log_params(run.id, {"alpha": "1"})
    mlflow.log_artifact(run.id, "orchestrator/output.log.gz", io.BytesIO(b"output"))
    found = mlflow.find_run(experiment, tags={"jenkins.build": "12"})
    assert found is not None
    assert mlflow.finish(found.id, "FINISHED").params == {"alpha": "1"}
    assert mlflow.metric_history(run.id, "loss") == []
    return run.id


@pytest.mark.services
def test_a_run_lives_in_the_workspace_that_the_setting_names(server: MlflowServer, experiment: str) -> None:
    with client(server.url, workspace=" team-a\n") as mlflow:
        assert mlflow.experiment(experiment).name == "fraud"
        run = mlflow.run(full_life(mlflow, experiment))
        assert mlflow.run_url(run) == f"{server.url}/#/experiments/{experiment}/runs/{run.id}?workspace=team-a"
    with client(server.url, workspace="team-b") as mlflow, pytest.raises(MlflowNotFound):
        mlflow.run(run.id)


def test_an_experiment_of_another_workspace_is_said_to_be_missing_in_this(
    server: MlflowServer, experiment: str
) -> None:
    with client(server.url, workspace="team-b") as mlflow, pytest.raises(MlflowNotFound) as error:
        mlflow.experiment(experiment)
    assert f"no experiment with ID {experiment} in workspace team-b on {server.url}" in str(error.value)
    with client(server.url) as mlflow, pytest.raises(MlflowNotFound, match=r"set MLFLOW_EXPERIMENT_ID or create it$"):
        mlflow.experiment(experiment)
    with client(server.url, workspace="team-a") as mlflow, pytest.raises(MlflowNotFound, match="not its ID: set"):
        mlflow.experiment("fraud")


def test_a_workspace_that_is_not_there_is_named(server: MlflowServer, experiment: str) -> None:
    with client(server.url, workspace="team-c") as mlflow, pytest.raises(MlflowNotFound) as error:
        mlflow.experiment(experiment)
    assert "set MLFLOW_EXPERIMENT_ID or MLFLOW_WORKSPACE, or create it (404" in str(error.value)
    assert "'team-c'" in str(error.value)


def test_a_server_without_workspaces_is_said_to_have_none(
    mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    with client(mlflow_server.url, workspace="team-a") as mlflow, pytest.raises(MlflowError) as error:
        mlflow.experiment("0")
    assert "has no workspaces: take MLFLOW_WORKSPACE out" in str(error.value)
    assert not caplog.records, "it is asked once"


@pytest.mark.parametrize("name", ["Team A", "team/a", "team-a\r\nX: y", "-a", "a" * 64, "tëam", "${TEAM}"])
def test_what_cannot_be_a_workspace_is_refused_at_once(name: str) -> None:
    with pytest.raises(SettingsError, match=r"(?s)MLFLOW_WORKSPACE: .* cannot be the name of a workspace"):
        client("http://127.0.0.1:1", workspace=name)
