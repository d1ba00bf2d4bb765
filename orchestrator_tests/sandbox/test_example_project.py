"""The sample project is honest: its tests pass, fail when the model is broken, and it trains into MLflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from orchestrator_sandbox.git import EXAMPLE
from orchestrator_sandbox.mlflow import MlflowServer

ENVIRONMENT = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return shutil.copytree(EXAMPLE, tmp_path / "digits")


def run(project: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=project,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_its_tests_pass_and_import_no_mlflow(project: Path) -> None:
    done = run(project, "-c", "import sys, pytest; print(pytest.main(['-q']), 'mlflow' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout + done.stderr


def test_a_commit_that_breaks_the_model_fails_its_tests(project: Path) -> None:
    (project / "src/digits/model.py").write_text("CLASSES = []\n")
    done = run(project, "-m", "pytest", "-q")
    assert done.returncode != 0
    assert "has no attribute 'build'" in done.stdout


def created_run(server: MlflowServer) -> str:
    created = requests.post(f"{api(server)}/runs/create", json={"experiment_id": "0"}, timeout=30).json()
    return str(created["run"]["info"]["run_id"])


def api(server: MlflowServer) -> str:
    return f"{server.url.rstrip('/')}/api/2.0/mlflow"


def recorded_run(server: MlflowServer, run_id: str) -> Any:
    return requests.get(f"{api(server)}/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]


CURVES = {"train_accuracy", "train_log_loss", "validation_accuracy", "validation_log_loss"}


def test_a_training_records_curves_metrics_data_plots_and_the_model_in_the_run_it_was_given(
    project: Path, mlflow_server: MlflowServer
) -> None:
    run_id = created_run(mlflow_server)
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.url, "MLFLOW_RUN_ID": run_id}
    done = run(project, "train.py", "--overrides", "epochs=2", **environment)
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stdout
    recorded = recorded_run(mlflow_server, run_id)
    assert recorded["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric for metric in recorded["data"]["metrics"]}
    assert set(metrics) == CURVES | {"accuracy", "f1", "log_loss"}
    assert int(metrics["train_log_loss"]["step"]) == 2
    assert metrics["accuracy"]["value"] > 0.85
    params = {param["key"]: param["value"] for param in recorded["data"]["params"]}
    assert params == {"epochs": "2", "learning_rate": "0.02", "alpha": "0.0001", "seed": "0"}
    assert recorded["inputs"]["dataset_inputs"][0]["dataset"]["digest"]
    (model,) = recorded["outputs"]["model_outputs"]
    files = requests.get(f"{api(mlflow_server)}/artifacts/list", params={"run_id": run_id}, timeout=30).json()
    assert {file["path"] for file in files["files"]} == {"plots", "reference.parquet"}
    files = requests.get(
        f"{api(mlflow_server)}/logged-models/{model['model_id']}/artifacts/directories", timeout=30
    ).json()
    assert {"MLmodel", "input_example.json", "serving_input_example.json"} <= {file["path"] for file in files["files"]}


@pytest.mark.services
def test_a_search_records_each_trial_in_a_run_of_its_own_and_the_best_as_the_model(
    project: Path, mlflow_server: MlflowServer
) -> None:
    run_id = created_run(mlflow_server)
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.url, "MLFLOW_RUN_ID": run_id}
    (project / "hyperopt.yaml").write_text((project / "hyperopt.yaml").read_text().replace("epochs: 15", "epochs: 2"))
    done = run(project, "tune.py", "--trials", "2", **environment)
    assert done.returncode == 0, done.stderr
    found = requests.post(
        f"{api(mlflow_server)}/runs/search",
        json={"experiment_ids": ["0"], "filter": f"tags.mlflow.parentRunId = '{run_id}'"},
        timeout=30,
    ).json()
    trials = [{param["key"]: param["value"] for param in trial["data"]["params"]} for trial in found["runs"]]
    parent = recorded_run(mlflow_server, run_id)
    assert len(trials) == 2
    assert {param["key"]: param["value"] for param in parent["data"]["params"]} in trials
    assert parent["outputs"]["model_outputs"]


def test_the_wheel_holds_the_package_and_nothing_else(project: Path) -> None:
    done = run(project, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist")
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    version = wheel.name.split("-")[1]
    assert folders == {"digits", f"digits-{version}.dist-info"}


def test_every_entry_point_runs_a_script_with_the_parameters_that_are_declared() -> None:
    project = yaml.safe_load((EXAMPLE / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"])
        assert (EXAMPLE / entry["command"].split()[1]).exists()
        assert (EXAMPLE / entry["parameters"]["config"]["default"]).exists()
    assert set(project["entry_points"]) == {"main", "tune"}
    assert (EXAMPLE / project["python_env"]).exists()
