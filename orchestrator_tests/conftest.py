"""What the tests share: a real MLflow server, and a world for attempts to train in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orchestrator.sandbox.ec2 import Ec2Server
from orchestrator.sandbox.git import GitRemote
from orchestrator.sandbox.mlflow import MlflowServer
from orchestrator_tests.attempts import PROJECT, World


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


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
        yield World(git, ec2, mlflow_server, directory)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait longest, so that no worker is left alone with one of them at the end."""
    longest_first = ("test_stack.py", "test_cli.py", "test_attempt.py", "test_janitor.py")
    ranks = {name: rank for rank, name in enumerate(longest_first)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))
