"""MLflow's system metrics are on where they can be recorded, and fail no script where they cannot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.hooked import hook, mlflow_run, mlproject

VARIABLE = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
SAYS = f"""
with mlflow.start_run():
    print("metrics", os.environ.get("{VARIABLE}"))
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that it is taken away again, whoever sets it
    monkeypatch.delenv(VARIABLE)


def environment(place: Path, text: str) -> list[str]:
    file = place / "python_env.yaml"
    file.write_text(text)
    return [str(file), str(place / "requirements.txt")]


@pytest.mark.parametrize(
    "text",
    ["dependencies:\n  - psutil\n", "dependencies:\n- 'psutil>=5'\n", "dependencies: [mlflow, psutil==7]\n"],
)
def test_they_are_on_where_the_files_of_the_environment_name_psutil(tmp_path: Path, text: str) -> None:
    hook("system_metrics").switch_on("virtualenv", environment(tmp_path, text))
    assert os.environ[VARIABLE] == "true"


def test_the_requirements_beside_it_count(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("mlflow\npsutil\n")
    hook("system_metrics").switch_on("uv", environment(tmp_path, "dependencies: [-r requirements.txt]\n"))
    assert os.environ[VARIABLE] == "true"


@pytest.mark.parametrize("text", ["dependencies:\n  - mlflow\n", "dependencies:\n  - psutil-less\n  # psutil\n", ""])
def test_they_stay_off_where_psutil_is_not_named(tmp_path: Path, text: str) -> None:
    hook("system_metrics").switch_on("conda", environment(tmp_path, text))
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("chosen", ["true", "false"])
def test_who_has_decided_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv(VARIABLE, chosen)
    hook("system_metrics").switch_on("virtualenv", environment(tmp_path, "dependencies: [psutil]\n"))
    assert os.environ[VARIABLE] == chosen


@pytest.mark.services
@pytest.mark.parametrize(("psutil", "state"), [(True, "true"), (False, "None")])
def test_a_script_that_begins_a_run_is_green_with_psutil_and_without(
    mlflow_server: MlflowServer, tmp_path: Path, psutil: bool, state: str
) -> None:
    (tmp_path / "project").mkdir()
    mlproject(tmp_path / "project", SAYS)
    if not psutil:
        (tmp_path / "bin").mkdir()
        python = tmp_path / "bin" / "python"
        # As in an environment that has MLflow, and no psutil.
        python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 1\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    status, output, _ = mlflow_run(
        mlflow_server, tmp_path / "project", home=tmp_path, path=str(tmp_path / "bin") if not psutil else ""
    )
    assert status == 0, output
    assert f"metrics {state}" in output
