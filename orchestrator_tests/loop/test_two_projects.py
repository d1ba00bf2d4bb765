"""Two ML projects, told apart by their defs.yaml alone, are trained side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import all_gone, running

pytestmark = pytest.mark.services


def test_each_project_s_builds_become_its_own_pipeline_s_models(tmp_path: Path) -> None:
    words = ("--once", "--json", "--projects", "2", "--port", str(free_port()), "--dir", "sandbox")
    with running("demo", *words, cwd=tmp_path) as command:
        command.await_output("Watch it in Dagster's UI")
        family = command.family()
        assert command.process.wait(600) == 0, command.output
    first, second = json.loads(command.output.splitlines()[-1])["projects"]
    assert [first["pipeline"], second["pipeline"]] == ["training", "training_2"]
    for project in (first, second):
        assert project["dagster_status"] == "SUCCESS"
        assert project["metrics"]["accuracy"] > 0.85
        assert project["instance_state"] == "terminated"
        assert project["champion"]["build"] == project["partition"]
        assert project["deployment"]["commit"] == project["commit"]
    assert first["deployment"]["target"] != second["deployment"]["target"]
    assert (tmp_path / "sandbox/in-use/digits-2/current/serving_input_example.json").exists()
    assert first["urls"]["git"] != second["urls"]["git"]
    assert first["mlflow_run_id"] != second["mlflow_run_id"]
    assert "name: training_2" in (tmp_path / "sandbox/defs/training_2/defs.yaml").read_text()
    assert all_gone(family)
