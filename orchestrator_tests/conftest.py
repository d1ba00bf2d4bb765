"""What the tests share: a real MLflow server, a world for attempts to train in, an SSH host to follow one on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Connection

import boto3
import botocore.loaders
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from botocore.client import ClientCreator
from hypothesis import settings
from sqlalchemy import event
from sqlalchemy.engine import Engine

from orchestrator.resources.ssh.connection import Ssh
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import FaultyProxy
from orchestrator_tests.support.attempts import PROJECT, World
from orchestrator_tests.support.containers import OF_THE_IMAGE
from orchestrator_tests.support.follower import LOGGER, Follower
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.ssh_server import SshHost

# Whatever profile is chosen: how long an example takes says how busy the machine is, and no more.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")


@event.listens_for(Engine, "connect")
def _wait_for_no_disk(connection: object, _record: object) -> None:
    """Dagster makes a database for each run, and waits for the disk thirty times; ours need not outlive a power cut."""
    if isinstance(connection, Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session", autouse=True)
def _read_migrations_once() -> Iterator[None]:
    """Alembic reads a hundred files for each database that Dagster makes, and so for each run."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def from_config(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = read(config)
        return known[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", staticmethod(from_config))
        yield


@pytest.fixture(scope="session", autouse=True)
def _cover_this_process_only() -> Iterator[None]:
    """slipcover takes a pytest that a test starts, as the sandbox's Jenkins does, for one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLIPCOVER_ENABLED", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _describe_aws_once() -> Iterator[None]:
    """boto3 parses its description of EC2 (1 MB), and makes a class with 800 methods of it, anew for each session."""
    loader, known = botocore.loaders.create_loader(None), dict[str, type]()
    make = ClientCreator._create_client_class  # type: ignore[attr-defined]

    def create(self: ClientCreator, service: str, model: object) -> type:
        if service not in known:
            known[service] = make(self, service, model)
        return known[service]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", lambda _path=None: loader)
        patch.setattr(ClientCreator, "_create_client_class", create)
        yield


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """For tests of `make test-services`, which installs it."""
    with DockerEngine(tmp_path_factory.mktemp("docker")) as engine:
        engine.borrowed_image("tiny", path=f"{sys.base_prefix}/bin:/usr/bin:/bin", files=[("train.py", OF_THE_IMAGE)])
        yield engine


# Not for the session: the AWS variables that lead to it would lead other tests' boto3 there, too.
@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MlflowServer) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    source = directory / "tiny"
    source.mkdir()
    for name, text in PROJECT.items():
        (source / name).write_text(text)
    with GitRemote(directory / "git", source) as git, Ec2Server(directory / "ec2") as ec2:
        aws = {name: value for name, value in ec2.env().items() if name.startswith("AWS_")}
        before = {name: os.environ.get(name) for name in aws}
        os.environ.update(aws)
        boto3.setup_default_session()  # the one that there is has kept the credentials of an earlier world
        world = World(git, ec2, mlflow_server, directory)
        yield world
        world.end_leases()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path / "gate") as gate:
        yield gate


@pytest.fixture
def aws_proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """On the way to the world's AWS: here, and in what an attempt starts."""
    with FaultyProxy() as proxy:
        proxy.upstream = world.ec2_server.url
        world.ec2_server.answer_for(proxy.url)
        monkeypatch.setitem(world.environment, "AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def mlflow_proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """On the way to the world's MLflow."""
    with FaultyProxy() as proxy:
        proxy.upstream = world.mlflow_server.url
        monkeypatch.setitem(world.environment, "MLFLOW_TRACKING_URI", proxy.url)
        yield proxy


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    with SshHost(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def ssh(host: SshHost) -> Iterator[Ssh]:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        yield ssh


@pytest.fixture
def follower(host: SshHost, ssh: Ssh, caplog: pytest.LogCaptureFixture) -> Iterator[Follower]:
    caplog.set_level(logging.INFO, logger=LOGGER)
    follower = Follower(host, ssh=ssh)
    yield follower
    if (follower.directory / "pid").is_symlink() and not (follower.directory / "exit").is_symlink():
        follower.training.stop(grace_seconds=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait longest, so that no worker is left alone with one of them at the end."""
    longest_first = (
        "loop/test_backfill.py",
        "loop/test_other_systems.py",
        "loop/test_stack.py",
        "training/test_attempt.py",
        "janitor/test_sensor.py",
        "web/test_matrix.py",
        "remote/test_training.py",
        "web/test_people_served.py",
        "remote/test_ends.py",
        "cli/test_commands.py",
        "remote/test_machine_facts.py",
        "pipeline/test_defs_folder.py",
    )
    ranks = {name: rank for rank, name in enumerate(longest_first)}
    items.sort(key=lambda item: ranks.get("/".join(item.path.parts[-2:]), len(ranks)))
