"""A training installs from a private index with a login, whoever manages its environment, and leaves no trace of it."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import SettingsError, TrainingFailed
from orchestrator.names import CONTAINER_LABEL
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.environment import job_files, secrets_in, training_environment
from orchestrator.remote.masking import Masker
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.ec2.host_config import CERTIFICATES
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.attempts import ThisRun, World, trained_metrics
from orchestrator_tests.support.containers import volumes
from orchestrator_tests.support.env_managers import PYTHON, Managers
from orchestrator_tests.support.environment import COMPLETE
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.package_index import MODULE, PACKAGE, PASSWORD, USER, PackageIndex

NEXUS = "https://nexus.example.com/repository/pypi/simple"
LOGIN = {"PRIVATE_INDEX_URL": NEXUS, "PRIVATE_INDEX_USER": USER, "PRIVATE_INDEX_PASSWORD": PASSWORD}


def environment(**values: str) -> tuple[dict[str, str], PipelineSettings]:
    read = PipelineSettings.read(SettingsSource(lookup={**COMPLETE, **LOGIN, **values}.get))
    return training_environment(read), read


def test_the_login_is_in_a_file_of_its_own_and_nowhere_else() -> None:
    variables, read = environment()
    assert variables["PIP_INDEX_URL"] == variables["UV_DEFAULT_INDEX"] == NEXUS
    assert "PIP_EXTRA_INDEX_URL" not in variables
    assert PASSWORD not in str(variables)
    netrc, names = job_files(variables, read)
    assert netrc.text == f"machine nexus.example.com login {USER} password {PASSWORD}\n"
    assert (netrc.variable, netrc.secret) == ("NETRC", True)
    assert {"NETRC", "PIP_INDEX_URL", "UV_DEFAULT_INDEX"} <= set(names.text.split())
    masker = Masker(secrets_in(variables, read))
    assert masker.mask(f"GET https://{USER}:{PASSWORD}@nexus") == f"GET https://{USER}:****@nexus"


def test_what_training_env_gives_is_stronger() -> None:
    own = {"PIP_INDEX_URL": "https://own.example/", "UV_INDEX_URL": "https://own.example/", "NETRC": "/etc/netrc"}
    variables, read = environment(TRAINING_ENV=",".join(own), **own)
    assert variables.items() >= own.items()
    assert "UV_DEFAULT_INDEX" not in variables
    assert [file.name for file in job_files(variables, read)] == ["docker.env"]


def test_without_a_private_index_nothing_is_given() -> None:
    variables, read = environment(**dict.fromkeys(LOGIN, ""))
    assert not [name for name in variables if name.startswith(("PIP_", "UV_"))]
    assert [file.name for file in job_files(variables, read)] == ["docker.env"]


def test_an_index_on_the_host_of_mlflow_gets_no_login_that_mlflow_would_be_sent_instead_of_its_own() -> None:
    same = {"MLFLOW_TRACKING_URI": "https://nexus.example.com:5000/mlflow"}
    environment(**same)
    for login in (
        {"MLFLOW_TRACKING_TOKEN": "token-of-mlflow"},
        {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "lovelace"},
        {"MLFLOW_TRACKING_URI": "https://ada:lovelace@nexus.example.com/"},
    ):
        with pytest.raises(SettingsError, match=r"both on nexus\.example\.com"):
            environment(**{**same, **login})
    environment(**same, MLFLOW_TRACKING_TOKEN="t", MLFLOW_TRACKING_URI_ON_INSTANCE="https://mlflow.internal/")


# Whatever makes the environment, `local` and a container have none: there the script installs what it needs.
TRAIN = """
import fcntl, json, os, subprocess, sys, urllib.request
what, target = sys.argv[1], "/tmp/packages-%d" % os.getpid()
if what == "install":
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--quiet", "--target", target, "PACKAGE"]
    subprocess.run(command, check=True)
    sys.path.insert(0, target)
import MODULE
print("imported", MODULE.WORDS)
point = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "accuracy", "value": 0.9, "timestamp": 1_700_000_000_000}
request = urllib.request.Request(
    os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric",
    json.dumps(point).encode(), {"Content-Type": "application/json"})
urllib.request.urlopen(request).read()
print("begun", flush=True)
with open("GATE") as gate:
    fcntl.flock(gate, fcntl.LOCK_SH)
"""

MANAGERS = {
    "local": ("local", "local", "install"),
    "virtualenv": ("python", "virtualenv", "import"),
    "uv": ("python", "uv", "import"),
    "docker_env": ("docker", "", "install"),
}


@dataclass(frozen=True)
class IndexedWorld:
    """A world with a private index, all environment managers, and a project in three folders."""

    world: World
    engine: DockerEngine
    managers: Managers
    git: GitRemote
    index: PackageIndex
    directory: Path
    gate: Path

    def attempt(
        self, number: int, manager: str, write: Callable[[str], object], *, password: str = PASSWORD
    ) -> Attempt:
        folder, choice, what = MANAGERS[manager]
        given = {name: value for name, value in self.managers.variables.items() if not name.startswith(("PIP_", "UV_"))}
        # Caches and environments of its own: what another test has installed proves nothing.
        given |= {"DOCKER_HOST": self.engine.host, "PIP_NO_CACHE_DIR": "1", "UV_PYTHON_DOWNLOADS": "never"}
        given |= {"UV_CACHE_DIR": str(self.directory / "uv"), "MLFLOW_ENV_ROOT": str(self.directory / "envs" / manager)}
        given |= {name: os.environ[name] for name in CERTIFICATES if name in os.environ}
        return self.world.attempt(
            number,
            run=ThisRun(f"run-{number}"),
            build=self.world.build(number, commit=self.git.head()),
            settings={
                **given,
                "PATH_ON_INSTANCE": self.managers.path,
                "TRAINING_ENV": ",".join([*given, "PATH=PATH_ON_INSTANCE"]),
                "MLPROJECT_URI": f"{self.git.url}#{folder}",
                "MLPROJECT_ENV_MANAGER": choice,
                "MLPROJECT_PARAMETERS": json.dumps({"what": what}),
                "MLPROJECT_DOCKER_ARGS": json.dumps({"network": "host"}),
                "PRIVATE_INDEX_URL": self.index.url,
                "PRIVATE_INDEX_USER": USER,
                "PRIVATE_INDEX_PASSWORD": password,
            },
            write=write,
        )

    def files(self) -> list[Path]:
        """All that there is on the disks of the instances, in the environments and in uv's cache."""
        places = [self.world.directory, self.directory / "envs", self.directory / "uv"]
        return [file for place in places for file in place.rglob("*") if file.is_file() and not file.is_symlink()]

    def holding_the_password(self) -> list[Path]:
        return [file for file in self.files() if PASSWORD.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def indexed(
    world: World, docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[IndexedWorld]:
    directory = tmp_path_factory.mktemp("indexed")
    gates = directory / "gates"
    gates.mkdir()
    source = directory / "source"
    docker_env = {"image": "tiny", "volumes": volumes(gates)}
    environments = {
        "local": "",
        "python": "python_env: python_env.yaml\n",
        "docker": f"docker_env: {json.dumps(docker_env)}\n",
    }
    script = TRAIN.replace("PACKAGE", PACKAGE).replace("MODULE", MODULE).replace("GATE", str(gates / "gate"))
    for folder, environment_of_it in environments.items():
        (source / folder).mkdir(parents=True)
        (source / folder / "train.py").write_text(script)
        python = f"{sys.base_prefix}/bin/python3" if folder == "docker" else "python"
        (source / folder / "MLproject").write_text(
            "name: indexed\nentry_points:\n  main:\n    parameters: {what: {type: string, default: import}}\n"
            f'    command: "{python} train.py {{what}}"\n{environment_of_it}'
        )
    dependencies = {"python": PYTHON, "build_dependencies": [], "dependencies": [f"{PACKAGE}==1.0"]}
    (source / "python" / "python_env.yaml").write_text(json.dumps(dependencies))
    with GitRemote(directory / "git", source) as git, PackageIndex(directory / "index") as index:
        managers = Managers.make(directory)
        yield IndexedWorld(world, docker_engine, managers, git, index, directory, gates / "gate")


@pytest.mark.services
@pytest.mark.parametrize("manager", MANAGERS)
def test_a_training_installs_from_the_private_index_and_leaves_no_trace_of_its_login(
    indexed: IndexedWorld, manager: str
) -> None:
    output: list[str] = []
    seen: list[str] = []
    number = 800 + list(MANAGERS).index(manager)
    before = indexed.index.handed_out()

    def look(text: str) -> None:
        output.append(text)
        if "begun" not in "".join(output) or seen:
            return
        for process in psutil.process_iter(["cmdline"]):
            if PASSWORD in " ".join(process.info["cmdline"] or []):
                seen.append(f"argv of {process.pid}")
        for file in indexed.holding_the_password():
            seen.append(f"{file.name} {stat.filemode(file.stat().st_mode)}")
        if manager == "docker_env":
            instance = indexed.world.ec2.find(pipeline="tiny", partition=str(number))
            assert instance is not None
            (container,) = indexed.engine.containers(f"{CONTAINER_LABEL}={instance.mlflow_run}")
            assert PASSWORD not in indexed.engine.run("inspect", container)
        gate.open()

    with Gate(indexed.gate) as gate:
        attempt = indexed.attempt(number, manager, look)
        attempt.train()
    text = "".join(output)
    assert "imported hello of acme" in text
    assert PASSWORD not in text
    assert seen == ["netrc -rw-------"]
    assert indexed.index.handed_out() > before
    assert not indexed.holding_the_password()  # before the instance is terminated
    attempt.terminate()
    run = attempt.finished().run
    attempt.close()
    assert (run.status, trained_metrics(run)) == ("FINISHED", {"accuracy": 0.9})
    assert PASSWORD not in str(run)


@pytest.mark.services
@pytest.mark.parametrize("manager", ["uv", "docker_env"])
def test_a_wrong_password_is_named_before_anything_is_installed(indexed: IndexedWorld, manager: str) -> None:
    output: list[str] = []
    attempt = indexed.attempt(820 + list(MANAGERS).index(manager), manager, output.append, password="wrong-password")
    with pytest.raises(
        TrainingFailed,
        match=r"\(403 from localhost: PRIVATE_INDEX_USER or its password is rejected, or may not .*\); correct PRIVATE",
    ) as failed:
        attempt.train()
    attempt.close()
    assert "wrong-password" not in str(failed.value) + "".join(output)


@pytest.mark.services
def test_a_wrong_password_is_refused_before_an_instance_is_launched(world: World, tmp_path: Path) -> None:
    def attempt(number: int, **settings: str) -> Attempt:
        return world.attempt(number, run=ThisRun(f"run-{number}"), settings={**index.env(), **settings})

    with PackageIndex(tmp_path / "index") as index:
        wrong, right = attempt(830, PRIVATE_INDEX_PASSWORD="wrong-password"), attempt(831)
        with pytest.raises(SettingsError, match="403 from localhost: PRIVATE_INDEX_USER or its password is") as failed:
            wrong.check()
        right.check()
        for each in (wrong, right):
            each.close()
    assert "wrong-password" not in str(failed.value)
    assert world.ec2.find(pipeline="tiny", partition="830") is None
