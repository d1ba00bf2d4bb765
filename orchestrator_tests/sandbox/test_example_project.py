"""The sample project is honest: its tests pass, fail when the model is broken, and it trains into MLflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    (project / "model.py").write_text("CLASSES = []\n")
    done = run(project, "-m", "pytest", "-q")
    assert done.returncode != 0
    assert "has no attribute 'load'" in done.stdout


def test_a_training_records_curves_metrics_and_the_model_in_the_run_it_was_given(
    project: Path, mlflow_server: MlflowServer
) -> None:
    api = f"{mlflow_server.url.rstrip('/')}/api/2.0/mlflow"
    created = requests.post(f"{api}/runs/create", json={"experiment_id": "0"}, timeout=30).json()
    run_id = created["run"]["info"]["run_id"]
    done = run(
        project, "train.py", "--epochs", "2", MLFLOW_TRACKING_URI=mlflow_server.url, MLFLOW_RUN_ID=run_id
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epoch   2/2" in done.stdout
    recorded = requests.get(f"{api}/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]
    assert recorded["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric for metric in recorded["data"]["metrics"]}
    assert set(metrics) == {
        "train_accuracy",
        "train_log_loss",
        "validation_accuracy",
        "validation_log_loss",
        "accuracy",
        "f1",
        "log_loss",
    }
    assert int(metrics["train_log_loss"]["step"]) == 2
    assert metrics["accuracy"]["value"] > 0.85
    assert {param["key"] for param in recorded["data"]["params"]} == {
        "epochs",
        "learning_rate",
        "alpha",
        "seed",
    }
    assert recorded["outputs"]["model_outputs"]


def test_every_entry_point_runs_the_training_with_declared_parameters() -> None:
    project = yaml.safe_load((EXAMPLE / "MLproject").read_text())
    assert set(project["entry_points"]) == {"main", "quick"}
    assert set(project["entry_points"]["main"]["parameters"]) == {"epochs", "learning_rate", "alpha", "seed"}
    assert (EXAMPLE / project["python_env"]).exists()
