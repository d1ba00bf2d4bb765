"""Each environment manager really runs: a training is green with all that is recorded, and red when it failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.errors import TrainingFailed
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.attempts import ThisRun, World, gone, trained_metrics
from orchestrator_tests.support.containers import volumes
from orchestrator_tests.support.env_managers import PYTHON, Managers

pytestmark = pytest.mark.services

# Besides MLflow's own, what each manager says of the interpreter that runs this.
TRAIN = """
import sys
import mlflow
what = sys.argv[1]
with mlflow.start_run():
    mlflow.log_param("prefix", sys.prefix)
    mlflow.log_param("mlflow", mlflow.__version__)
    if what == "crash":
        raise ValueError("the data is not what it was")
    mlflow.log_metric("accuracy", 0.9)
    if what == "swallow":
        mlflow.end_run("FAILED")
if what == "well":
    with mlflow.start_run(run_name="evaluation"):  # names no parent: it is known by its mark only
        mlflow.log_metric("accuracy", 0.8)
if what == "exit":
    sys.exit(1)
"""

ENTRY_POINTS = """
entry_points:
  main: {command: "PYTHON train.py well"}
  piped: {command: "PYTHON train.py crash 2>&1 | tee train.log"}
  exits: {command: "PYTHON train.py exit"}
  ends: {command: "PYTHON train.py swallow"}
"""

RED = {
    "piped": "ValueError: the data is not what it was",
    "exits": "exited with status 1",
    "ends": "the script had ended its MLflow run as FAILED",
}

# The client alone: an environment with it is made in seconds.
MLFLOW = f"mlflow-skinny=={version('mlflow')}"

ENVIRONMENTS = {
    "python": ("python_env.yaml", {"python": PYTHON, "build_dependencies": ["pip"], "dependencies": [MLFLOW]}),
    "conda": ("conda.yaml", {"name": "p", "dependencies": [f"python={PYTHON}", "pip", {"pip": [MLFLOW]}]}),
}

MANAGERS = {
    "local": ("python", "local"),
    "virtualenv": ("python", ""),  # MLflow's own choice
    "virtualenv of a conda.yaml": ("conda", "virtualenv"),
    "uv": ("python", "uv"),
    "conda": ("conda", ""),  # MLflow's own choice
    "docker_env": ("docker", ""),
}


@dataclass(frozen=True)
class ManagedWorld:
    """A world with all environment managers, and a project in three folders."""

    world: World
    engine: DockerEngine
    managers: Managers
    git: GitRemote

    def attempt(self, number: int, manager: str, entry_point: str) -> Attempt:
        folder, choice = MANAGERS[manager]
        values = {**self.managers.variables, "DOCKER_HOST": self.engine.host, "PATH_ON_INSTANCE": self.managers.path}
        names = [*self.managers.variables, "DOCKER_HOST", "PATH=PATH_ON_INSTANCE"]
        return self.world.attempt(
            number,
            run=ThisRun(f"run-{number}"),
            build=self.world.build(number, commit=self.git.head()),
            settings={
                **values,
                "TRAINING_ENV": ",".join(names),
                "MLPROJECT_URI": f"{self.git.url}#{folder}",
                "MLPROJECT_ENV_MANAGER": choice,
                "MLPROJECT_ENTRY_POINT": entry_point,
                "MLPROJECT_DOCKER_ARGS": json.dumps({"network": "host"}),
            },
        )


@pytest.fixture(scope="module")
def managed(
    world: World, docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ManagedWorld]:
    directory = tmp_path_factory.mktemp("managers")
    source = directory / "source"
    for folder in ("python", "conda", "docker"):
        (source / folder).mkdir(parents=True)
        (source / folder / "train.py").write_text(TRAIN)
        python = sys.executable if folder == "docker" else "python"
        (source / folder / "MLproject").write_text("name: managed\n" + ENTRY_POINTS.replace("PYTHON", python))
    for folder, (file, content) in ENVIRONMENTS.items():
        (source / folder / file).write_text(json.dumps(content))
        with (source / folder / "MLproject").open("a") as mlproject:
            mlproject.write(f"{folder}_env: {file}\n")
    docker_env = {"image": "tiny", "volumes": [*volumes(), f"{sys.prefix}:{sys.prefix}:ro"]}
    with (source / "docker" / "MLproject").open("a") as mlproject:
        mlproject.write(f"docker_env: {json.dumps(docker_env)}\n")
    with GitRemote(directory / "git", source) as git:
        yield ManagedWorld(world, docker_engine, Managers.make(directory), git)


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_training_is_recorded_whoever_manages_its_environment(managed: ManagedWorld, manager: str) -> None:
    number = 700 + list(MANAGERS).index(manager)
    attempt = managed.attempt(number, manager, "main")
    attempt.train()
    attempt.terminate()
    finished = attempt.finished()
    attempt.close()
    run = finished.run
    assert (run.status, trained_metrics(run)) == ("FINISHED", {"accuracy": 0.9})
    assert run.tags["jenkins.build"] == str(number)
    assert run.tags["dagster_run_id"] == f"run-{number}"
    assert run.params["mlflow"] == version("mlflow")
    [evaluation] = finished.others
    assert (evaluation.name, evaluation.tags["orchestrator.training"]) == ("evaluation", run.id)
    assert evaluation.tags["jenkins.build"] == str(number)
    ours = manager in ("local", "docker_env")
    assert (Path(run.params["prefix"]) == Path(sys.prefix)) is ours
    if not ours:
        assert run.tags["mlflow.project.env"] == manager.partition(" ")[0]
    assert gone(managed.world, run.tags["ec2.instance_id"])


@pytest.mark.parametrize("entry_point", RED)
@pytest.mark.parametrize("manager", [manager for manager in MANAGERS if " " not in manager])
def test_a_training_that_failed_is_red_whoever_manages_its_environment(
    managed: ManagedWorld, manager: str, entry_point: str
) -> None:
    number = 710 + 10 * list(MANAGERS).index(manager) + list(RED).index(entry_point)
    attempt = managed.attempt(number, manager, entry_point)
    with pytest.raises(TrainingFailed, match=RED[entry_point]):
        attempt.train()
    attempt.close()
    experiment = managed.world.environment["MLFLOW_EXPERIMENT_ID"]
    [run] = managed.world.mlflow.find_runs(experiment, tags={"dagster_run_id": f"run-{number}"})
    assert run.status == "FAILED"
    assert gone(managed.world, run.tags["ec2.instance_id"])
