"""The model that a training has logged is loaded in the training's own environment, right after it."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.names import MlflowTag
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.containers import volumes
from orchestrator_tests.support.env_managers import PYTHON, Managers
from orchestrator_tests.support.hooked import mlflow_run
from orchestrator_tests.support.logged_models import TINY
from orchestrator_tests.support.mlflow_client import client

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[2]
ASKED = {"seconds": 120, "left": 3600, "choice": "", "secret": [], "tag": MlflowTag.TRAINING}

LOGS = f"""
import os, sys, json
sys.path.insert(0, {str(REPOSITORY)!r})
from orchestrator_tests.support.logged_models import finished_run, log_model
uri, run_id = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
files = json.load(open("model.json"))
"""
ONE = LOGS + "log_model(uri, run_id, files=files)\n"

LOADER = "code/tiny_model.py"
IMPORTS = {**TINY, LOADER: f"import beside\n{TINY[LOADER]}"}


@dataclass
class Project:
    """A project that logs a model, and `mlflow run` below our hooks."""

    server: MlflowServer
    directory: Path
    monkeypatch: pytest.MonkeyPatch
    output: str = ""

    def run(
        self,
        files: Mapping[str, str] = TINY,
        *,
        script: str = ONE,
        command: str = "python train.py",
        more: str = "",
        asked: Mapping[str, object] | None = None,
        **options: Any,
    ) -> dict[str, Any] | None:
        """What stands on the training's run afterwards; None: nothing."""
        project = self.directory / "project"
        project.mkdir()
        (project / "beside.py").write_text("")
        (project / "train.py").write_text(script)
        (project / "model.json").write_text(json.dumps(files))
        (project / "MLproject").write_text(f"name: p\nentry_points:\n  main:\n    command: {command!r}\n{more}")
        if asked is not None:
            given = {**ASKED, "result": MlflowTag.MODEL_LOADED, **asked}
            self.monkeypatch.setenv("ORCHESTRATOR_MODEL_CHECK", json.dumps(given))
        status, self.output, held = mlflow_run(self.server, project, home=self.directory, **options)
        assert (status, held) == (0, "FINISHED"), self.output
        [argument] = [line for line in self.output.splitlines() if "in run with ID" in line]
        tags = client(self.server.url).run(argument.split("'")[-2]).tags
        return json.loads(tags[MlflowTag.MODEL_LOADED]) if MlflowTag.MODEL_LOADED in tags else None


@pytest.fixture
def project(mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(mlflow_server, tmp_path, monkeypatch)


def test_a_model_is_loaded_and_answers_its_input_example(project: Project) -> None:
    result = project.run(asked={})
    assert result is not None
    assert (result["state"], result["predicted"], result["python"]) == ("loaded", True, PYTHON), project.output
    assert result["model"].startswith("m-")
    assert "was loaded in" in project.output


@pytest.mark.matrix
def test_what_lies_beside_the_script_only_is_not_there_where_the_model_is_used(project: Project) -> None:
    result = project.run(IMPORTS, asked={})
    assert result is not None
    assert result["state"] == "failed"
    assert result["reason"].splitlines()[-1] == "ModuleNotFoundError: No module named 'beside'"


@pytest.mark.matrix
def test_a_model_that_cannot_answer_its_own_example_does_not_pass(project: Project) -> None:
    result = project.run({**TINY, LOADER: TINY[LOADER].replace('["x"]', '["y"]')}, asked={})
    assert result is not None
    assert (result["state"], result["reason"].splitlines()[-1]) == ("failed", "KeyError: 'y'")


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("body", "reason"),
    [("import time; time.sleep(600)", "was not loaded in time"), ("import os; os.abort()", "could not be loaded")],
    ids=["hangs", "crashes"],
)
def test_a_model_that_takes_its_process_along_costs_the_training_nothing(
    project: Project, body: str, reason: str
) -> None:
    result = project.run({**TINY, LOADER: f"{body}\n{TINY[LOADER]}"}, asked={"seconds": 15})
    assert result is not None
    assert result["state"] == "failed"
    assert reason in result["reason"]


@pytest.mark.matrix
def test_no_model_and_no_question_cost_nothing(project: Project) -> None:
    assert project.run(script="print('trained')\n", asked={}) is None
    assert "loading the model" not in project.output


@pytest.mark.matrix
def test_nothing_is_loaded_where_nobody_asks(project: Project) -> None:
    assert project.run(script=f"{ONE}assert 'ORCHESTRATOR_MODEL_CHECK' not in os.environ\n") is None


@pytest.mark.matrix
def test_a_training_whose_time_is_over_says_so(project: Project) -> None:
    result = project.run(asked={"left": 25}, script=f"{ONE}assert 'ORCHESTRATOR_MODEL_CHECK' not in os.environ\n")
    assert result is not None
    assert result["state"] == "failed"
    assert "raise MAX_TRAINING_MINUTES" in result["reason"]


@pytest.mark.matrix
def test_secrets_stay_out_of_what_is_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "correct-horse")
    monkeypatch.setenv("WORD", "battery-staple")
    body = "import os\nraise ValueError(os.environ['API_TOKEN'], os.environ['WORD'], 'https://me:pass1@host/')\n"
    result = project.run({**TINY, LOADER: body}, asked={"secret": ["WORD"]})
    assert result is not None
    assert result["reason"].splitlines()[-1] == "ValueError: ('***', '***', 'https://***@host/')"


@pytest.mark.matrix
def test_the_model_of_another_run_of_the_training_is_loaded_too(project: Project) -> None:
    script = (
        LOGS
        + f"""
other = finished_run(uri, "0", metrics={{"accuracy": 1}}, tags={{{MlflowTag.TRAINING!r}: run_id}})
log_model(uri, other, files=files)
print("other run", other)
"""
    )
    assert project.run(script=script, asked={}) is None
    [line] = [line for line in project.output.splitlines() if line.startswith("other run")]
    tags = client(project.server.url).run(line.split()[-1]).tags
    assert json.loads(tags[MlflowTag.MODEL_LOADED])["state"] == "loaded"


def linked(directory: Path) -> Path:
    """A package that brings all packages of this environment into another one, in no time."""
    wheel = directory / "linked-1.0-py3-none-any.whl"
    place = next(place for place in sys.path if place.endswith("site-packages"))
    files = {
        "linked.pth": f"{place}\n",
        "linked-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: linked\nVersion: 1.0\n",
        "linked-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "linked-1.0.dist-info/RECORD": "linked.pth,,\nlinked-1.0.dist-info/RECORD,,\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.mark.parametrize(
    ("manager", "files"),
    [
        pytest.param("virtualenv", TINY, id="virtualenv"),
        pytest.param("virtualenv", IMPORTS, id="virtualenv, not loadable", marks=pytest.mark.matrix),
        pytest.param("uv", TINY, id="uv", marks=pytest.mark.matrix),
        pytest.param("conda", TINY, id="conda", marks=pytest.mark.matrix),
    ],
)
def test_a_model_is_loaded_in_the_environment_that_was_made_for_the_training(
    project: Project, manager: str, files: Mapping[str, str]
) -> None:
    managers = Managers.make(project.directory / "managers")
    for name, value in managers.variables.items():
        project.monkeypatch.setenv(name, value)
    wheel = str(linked(project.directory))
    environment: dict[str, Any] = {"python": PYTHON, "build_dependencies": ["pip"], "dependencies": [wheel]}
    if manager == "conda":
        environment = {"name": "p", "dependencies": [f"python={PYTHON}", "pip", {"pip": [wheel]}]}
    (project.directory / "env.yaml").write_text(json.dumps(environment))
    kind = "conda_env" if manager == "conda" else "python_env"
    more = f"{kind}: {os.path.relpath(project.directory / 'env.yaml', project.directory / 'project')}\n"
    check = f"assert {sys.prefix!r} != __import__('sys').prefix\n"
    result = project.run(
        files, script=check + ONE, more=more, asked={}, path=managers.path, arguments=["--env-manager", manager]
    )
    assert result is not None
    assert result["state"] == ("loaded" if files is TINY else "failed"), (result, project.output)


@pytest.mark.matrix
def test_a_model_is_loaded_in_the_training_s_container(project: Project, docker_engine: DockerEngine) -> None:
    docker_env = {
        "image": "tiny",
        "volumes": [*volumes(), f"{sys.prefix}:{sys.prefix}:ro", f"{REPOSITORY}:{REPOSITORY}:ro"],
    }
    project.monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    result = project.run(
        command=f"{sys.executable} train.py",
        more=f"docker_env: {json.dumps(docker_env)}\n",
        asked={},
        arguments=["--docker-args", "network=host", "--build-image"],
    )
    assert result is not None
    assert (result["state"], result["predicted"]) == ("loaded", True), (result, project.output)
