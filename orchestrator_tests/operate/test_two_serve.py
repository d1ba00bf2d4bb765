"""Two `serve` on one database: the second stands by, and takes over when the first is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.commands import Command, all_gone, running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@contextmanager
def _serve(folder: Path, environment: Mapping[str, str]) -> Iterator[Command]:
    folder.mkdir()
    (folder / "workspace.yaml").write_text("load_from: []\n")  # what is served makes no difference here
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(PROJECT), **environment}
    with running("serve", "--port", str(free_port()), cwd=folder, environment=own) as command:
        command.await_output("Dagster runs on")
        yield command


@pytest.mark.parametrize(("storage", "killed"), [("postgres", "serve"), ("sqlite", "everything")])
def test_the_second_takes_over_when_the_first_is_killed(storage: str, killed: str, tmp_path: Path) -> None:
    with Postgres() as server:
        environment = {"DAGSTER_HOME": str(tmp_path / "home")}
        if storage == "postgres":
            environment = {"DAGSTER_POSTGRES_URL": server.url(server.new_database())}
        with _serve(tmp_path / "first", environment) as first, _serve(tmp_path / "second", environment) as second:
            second.await_output("Standing by: ")
            assert "Standing by" not in first.output
            family = first.family()
            for process in family[:1] if killed == "serve" else family:
                process.kill()
            try:
                until(lambda: "Taking over" in second.output, seconds=120)
                until(lambda: "Instance is configured with the following daemons" in second.output, seconds=120)
            finally:
                for process in family:
                    if process.is_running():
                        process.kill()
            until(lambda: all_gone(family))
            assert second.end() == 128 + 15
