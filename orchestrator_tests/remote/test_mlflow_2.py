"""Instances may have MLflow 2, and the server 3: colours, tags, defaults and containers are the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import TrainingFailed
from orchestrator.names import CONTAINER_LABEL
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.remote.test_model_check import ONE, Project
from orchestrator_tests.support.attempts import ThisRun, World, trained_metrics
from orchestrator_tests.support.containers import volumes
from orchestrator_tests.support.env_managers import package_index
from orchestrator_tests.support.git_servers import answering, old_ssh, served
from orchestrator_tests.support.hooked import SCRIPTS, mlflow_run, mlproject

pytestmark = pytest.mark.services

RAISES = "with mlflow.start_run():\n    raise ValueError('no')\n"

CRASHED = {
    **{name: (SCRIPTS[name], "python train.py") for name in ("swallows", "says so", "leaves by a hook")},
    "in a pipe": ("raise ValueError('no')\n", "python train.py 2>&1 | tee train.log"),
    "in a pipe, in its run": (RAISES, "python train.py 2>&1 | tee train.log"),
    "before a good part": (RAISES, "python train.py; python -c 'import mlflow; mlflow.start_run()'"),
}

GOOD = {
    "in its run": (
        "with mlflow.start_run():\n    mlflow.log_metric('accuracy', 1)\n",
        "python train.py | tee train.log",
    ),
    "without a call of MLflow": ("print('trained')\n", "python train.py"),
    "in a run that it leaves open": ("mlflow.start_run()\nos._exit(0)\n", "python train.py"),
    "in a second try": (RAISES, "python train.py || python -c 'import mlflow; mlflow.start_run()'"),
}

TRAIN = """
import os, sys
import mlflow
what = sys.argv[1]
with mlflow.start_run():
    if what == "crash":
        raise ValueError("the data is not what it was")
    mlflow.log_param("mlflow", mlflow.__version__)
    mlflow.log_param("key", os.environ.get("API_KEY"))
    mlflow.log_metric("accuracy", 0.9)
    with mlflow.start_run(run_name="fold", nested=True):
        mlflow.log_metric("accuracy", 0.8)
"""


def first_and_matrix(cases: Mapping[str, tuple[str, str]]) -> list[Any]:
    """The first case; the others are for `make test-matrix`, for MLflow 2 takes half a minute a training."""
    return [
        pytest.param(*case, id=name, marks=[pytest.mark.matrix] if number else [])
        for number, (name, case) in enumerate(cases.items())
    ]


@pytest.fixture(scope="module")
def mlflow_2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The newest `mlflow` of the second major version, in an environment of its own."""
    place = tmp_path_factory.mktemp("mlflow-2") / "venv"
    uv, environment = str(Path(sys.executable).with_name("uv")), {**os.environ, **package_index()}
    for command in (
        ["venv", "--python", sys.executable, str(place)],
        ["pip", "install", "--python", str(place / "bin" / "python"), "mlflow>=2.22,<3"],
    ):
        subprocess.run([uv, "--quiet", *command], env=environment, check=True, timeout=600)
    return str(place / "bin" / "mlflow")


@pytest.mark.parametrize(("script", "command"), first_and_matrix(CRASHED))
def test_a_training_that_failed_is_no_success(
    mlflow_server: MlflowServer, mlflow_2: str, tmp_path: Path, script: str, command: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    status, output, held = mlflow_run(
        mlflow_server, mlproject(project, script, command), home=tmp_path, program=mlflow_2
    )
    assert status != 0, output
    assert (tmp_path / "run" / "guarded").exists()
    if "start_run" in script and ";" not in command:
        assert held == "FAILED"


@pytest.mark.parametrize(("script", "command"), first_and_matrix(GOOD))
def test_a_training_that_went_well_is_finished(
    mlflow_server: MlflowServer, mlflow_2: str, tmp_path: Path, script: str, command: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    status, output, held = mlflow_run(
        mlflow_server, mlproject(project, script, command), home=tmp_path, program=mlflow_2
    )
    assert (status, held) == (0, "FINISHED"), output


def test_a_project_comes_from_a_server_that_hands_out_branch_tips_only(
    mlflow_server: MlflowServer, mlflow_2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    mlproject(tmp_path / "source", "print('trained')")
    monkeypatch.setenv("GIT_SSH_COMMAND", old_ssh(tmp_path))
    with GitRemote(tmp_path / "git", tmp_path / "source") as remote:
        first = remote.head()
        remote.commit("Remove the script", lambda tree: (tree / "train.py").unlink())
        uri, arguments = f"ssh://git@server{remote.push_url}", ["--version", first]
        status, output, held = mlflow_run(mlflow_server, uri, home=tmp_path, program=mlflow_2, arguments=arguments)
    assert (status, held) == (0, "FINISHED"), output
    assert "unadvertised object" in output


@pytest.mark.parametrize(("status", "sentence"), [(401, "refuses the login of the training"), (404, "knows no run")])
def test_what_mlflow_answers_is_told_before_anything_begins(
    mlflow_server: MlflowServer, mlflow_2: str, tmp_path: Path, status: int, sentence: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}' if status == 404 else b"Unauthorized"
    with served(answering(status=status, body=body)) as url:
        ended, output, _ = mlflow_run(
            mlflow_server, mlproject(project, "print('trained')"), home=tmp_path, program=mlflow_2, address=url
        )
    assert ended == 1
    assert sentence in output.splitlines()[-1]


@pytest.fixture(scope="module")
def both(mlflow_2: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitRemote]:
    """A project whose folders are run without and with a container."""
    source = tmp_path_factory.mktemp("both") / "source"
    environment = Path(mlflow_2).parents[1]
    docker_env = {
        "image": "tiny",
        "volumes": [*volumes(), f"{environment}:{environment}:ro"],
    }
    for folder, python in {"plain": "python", "boxed": str(environment / "bin" / "python")}.items():
        (source / folder).mkdir(parents=True)
        (source / folder / "train.py").write_text(TRAIN)
        (source / folder / "MLproject").write_text(
            "name: both\nentry_points:\n  main:\n    parameters:\n"
            "      what: {type: string, default: well}\n      depth: {type: int, default: 3}\n"
            f"    command: {json.dumps(f'{python} train.py {{what}} 2>&1 | tee train.log')}\n"
        )
    with (source / "boxed" / "MLproject").open("a") as file:
        file.write(f"docker_env: {json.dumps(docker_env)}\n")
    with GitRemote(source.parent / "git", source) as git:
        yield git


def attempt_at(
    world: World, git: GitRemote, engine: DockerEngine, program: str, *, number: int, folder: str, what: str
) -> Attempt:
    return world.attempt(
        number,
        run=ThisRun(f"run-{number}"),
        build=world.build(number, commit=git.head()),
        settings={
            "MLFLOW_COMMAND": program,
            "MLPROJECT_URI": f"{git.url}#{folder}",
            "MLPROJECT_PARAMETERS": json.dumps({"what": what} if what != "well" else {}),
            "MLPROJECT_ENV_MANAGER": "local" if folder == "plain" else "",
            "MLPROJECT_DOCKER_ARGS": json.dumps({"network": "host"}),
            "TRAINING_ENV": "DOCKER_HOST,API_KEY",
            "DOCKER_HOST": engine.host,
            "API_KEY": "correct-horse-battery",
        },
    )


@pytest.mark.parametrize(("number", "folder"), [(851, "plain"), (852, "boxed")])
def test_a_training_is_recorded_with_all_that_it_made(
    world: World, docker_engine: DockerEngine, mlflow_2: str, both: GitRemote, number: int, folder: str
) -> None:
    attempt = attempt_at(world, both, docker_engine, mlflow_2, number=number, folder=folder, what="well")
    attempt.train()
    attempt.terminate()
    finished = attempt.finished()
    attempt.close()
    run = finished.root
    assert (run.status, trained_metrics(run)) == ("FINISHED", {"accuracy": 0.9})
    assert run.params["mlflow"].startswith("2.")
    assert run.params["key"] == "correct-horse-battery"
    assert (run.params["what"], run.params["depth"]) == ("well", "3")
    assert "mlflow.user" in run.tags
    [fold] = finished.others
    assert fold.tags["orchestrator.training"] == run.id
    assert fold.tags["jenkins.build"] == str(number)
    assert not docker_engine.containers(f"{CONTAINER_LABEL}={run.id}")


@pytest.mark.parametrize(("number", "folder"), [(861, "plain"), (862, "boxed")])
def test_a_training_that_failed_in_a_pipe_is_red(
    world: World, docker_engine: DockerEngine, mlflow_2: str, both: GitRemote, number: int, folder: str
) -> None:
    attempt = attempt_at(world, both, docker_engine, mlflow_2, number=number, folder=folder, what="crash")
    with pytest.raises(TrainingFailed, match="ValueError: the data is not what it was"):
        attempt.train()
    attempt.close()
    [run] = world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags={"dagster_run_id": f"run-{number}"})
    assert run.status == "FAILED"


@pytest.mark.matrix
@pytest.mark.parametrize("log", ["log_model", "log_model_2"], ids=["as MLflow 3", "as MLflow 2"])
def test_the_model_is_loaded_in_the_training_s_environment(
    mlflow_server: MlflowServer, mlflow_2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    """MLflow 2 does not see the models of MLflow 3, and says that it has loaded none."""
    project = Project(mlflow_server, tmp_path, monkeypatch)
    script = ONE.replace("log_model(uri", f"{log}(uri").replace("import finished_run, log_model", f"import {log}")
    script = script.replace("import os, sys, json", "import os, sys, json; sys.path.append(SITE)")
    script = script.replace("SITE", repr(next(place for place in sys.path if place.endswith("site-packages"))))
    result = project.run(asked={}, script=script, program=mlflow_2)
    if log == "log_model":
        assert result is None
    else:
        assert result is not None
        assert (result["state"], result["predicted"]) == ("loaded", True), project.output
