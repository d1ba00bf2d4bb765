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

from orchestrator_sandbox.git import EXAMPLE, git
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.package_index import PackageIndexServer
from orchestrator_tests.support.package_index import PASSWORD, USER

ENVIRONMENT = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return shutil.copytree(EXAMPLE, tmp_path / "digits")


@pytest.fixture
def checkout(project: Path) -> Path:
    """The project with a commit, which its package has its version of."""
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "Add the project")):
        git(*words, cwd=project)
    return project


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
    assert {tag["key"]: tag["value"] for tag in recorded["data"]["tags"]}["digits.version"] == "not installed"
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


def test_the_wheel_holds_the_package_and_nothing_else_and_names_the_commit(checkout: Path) -> None:
    done = run(checkout, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist")
    assert done.returncode == 0, done.stderr
    version = f"1.0.0+g{git('rev-parse', 'HEAD', cwd=checkout)[:12]}"
    with zipfile.ZipFile(checkout / "dist" / f"digits-{version}-py3-none-any.whl") as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    assert folders == {"digits", f"digits-{version}.dist-info"}


def script(project: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {**ENVIRONMENT, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PATH": path, **environment}
    return subprocess.run(
        ["sh", name], cwd=project, env=given, capture_output=True, text=True, check=False, timeout=120
    )


def test_what_is_not_committed_is_neither_published_nor_passed_over_for_a_wheel(checkout: Path) -> None:
    nowhere = "http://127.0.0.1:1/"
    (checkout / "src/digits/model.py").write_text("# better\n")
    published = script(checkout, "publish.sh", UPLOAD_URL=nowhere, INDEX_URL=nowhere)
    assert published.returncode == 1
    assert ".changed is not published" in published.stderr
    installed = script(checkout, "install.sh", PIP_INDEX_URL=nowhere)
    assert (installed.returncode, installed.stdout) == (
        0,
        "Files differ from the commit: training with src/ as it is\n",
    )


def test_without_a_private_index_the_checkout_s_own_package_is_used(project: Path) -> None:
    environment = {name: text for name, text in ENVIRONMENT.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        ["sh", "install.sh"], cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "No private index (PIP_INDEX_URL): training with src/ as it is\n")


def jenkins_publishes(checkout: Path, index: PackageIndexServer) -> subprocess.CompletedProcess[str]:
    """Run the shell step of the Jenkinsfile that publishes, with what Jenkins puts into its environment."""
    (checkout / ".venv").symlink_to(sys.prefix)
    (step,) = re.findall(r"sh '''\n(.*?)'''", (checkout / "Jenkinsfile").read_text(), re.DOTALL)
    (checkout.parent / "step.sh").write_text(step.replace("\\\\", "\\"))  # as Groovy reads it
    login = {"NEXUS_USER": USER, "NEXUS_PASSWORD": PASSWORD}
    return script(checkout, "../step.sh", UPLOAD_URL=index.upload_url, INDEX_URL=index.url, **login)


@pytest.mark.services
def test_a_version_is_published_once_and_another_build_of_the_commit_must_be_the_same(
    checkout: Path, tmp_path: Path
) -> None:
    with PackageIndexServer(tmp_path / "index", user=USER, password=PASSWORD) as index:
        done = jenkins_publishes(checkout, index)
        assert done.returncode == 0, done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        done = script(checkout, "publish.sh", **index.publishing())
        assert done.returncode == 0, done.stderr
        (wheel,) = index.packages.iterdir()
        wheel.write_bytes(wheel.read_bytes() + b"\0")
        done = script(checkout, "publish.sh", **index.publishing())
        assert done.returncode != 0
        assert "Local file and index file do not match" in done.stderr
        wheel.unlink()
        done = script(checkout, "install.sh", PIP_INDEX_URL=index.url, NETRC=index.publishing()["NETRC"])
        assert done.returncode == 1
        assert "cannot be installed from the private index: has Jenkins' build of this commit" in done.stderr


def test_every_entry_point_runs_a_script_with_the_parameters_that_are_declared() -> None:
    project = yaml.safe_load((EXAMPLE / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"])
        programs = re.findall(r"\w+\.(?:py|sh)\b", entry["command"])
        assert len(programs) == 2
        assert all((EXAMPLE / name).exists() for name in programs)
        assert (EXAMPLE / entry["parameters"]["config"]["default"]).exists()
    assert set(project["entry_points"]) == {"main", "tune"}
    assert (EXAMPLE / project["python_env"]).exists()
