"""Who serves dies in mid-training: another machine, or the next version, goes on, and nothing is doubled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.demo.outcome import OutcomeReader
from orchestrator_sandbox.processes.child import free_port
from orchestrator_sandbox.stack import TRAINED_MODEL, Stack
from orchestrator_tests.support.commands import Command, all_gone, running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until
from orchestrator_tests.support.waiting_training import (
    instances,
    kill_all,
    mlflow_runs,
    waiting_project,
    workers_of,
)

pytestmark = pytest.mark.matrix

OLD = "f1d0766db348913a8748e66ef59f7fef73fa5e81"
"""A commit of before PostgreSQL, login, signed builds and models."""


@dataclass(frozen=True)
class Begun:
    """A build whose training waits for the file `go`."""

    stack: Stack
    folder: Path
    environment: Mapping[str, str]

    def await_training(self) -> None:
        until(lambda: (self.folder / "begun").exists(), seconds=400, every=0.3)


@contextmanager
def green_build(tmp_path: Path, settings: Mapping[str, str]) -> Iterator[Begun]:
    """Everything but Dagster, with one green build whose training waits."""
    folder = tmp_path / "training"
    folder.mkdir()
    with Stack(tmp_path / "stack", settings=dict(settings)) as stack:
        stack.git.commit("Wait for the one that takes over", waiting_project(folder))
        jenkins = OutcomeReader(stack.jenkins.env(), dagster_url="")
        until(lambda: [build for build in jenkins.builds() if build.commit == stack.git.head() and build.finished])
        yield Begun(stack, folder, {**stack.dagster_environment(), "PYTHONPATH": str(PROJECT)})


@contextmanager
def serving(place: Path, environment: Mapping[str, str], *, port: int) -> Iterator[Command]:
    place.mkdir(exist_ok=True)
    with running("serve", "--port", str(port), cwd=place, environment=environment) as command:
        command.await_output("Dagster runs on")
        yield command


def assert_recorded_once(begun: Begun, dagster: DagsterApi, *, adopted: bool = True) -> None:
    """Let the training go, and look at all that is left of it in the end.

    Args:
        begun: the build.
        dagster: its runs.
        adopted: the second run goes on with the first one's training; else it has terminated that instance.
    """
    until(lambda: len(dagster.runs()) == 2, seconds=400, every=1)
    retry, lost = dagster.runs()  # the newest first
    (begun.folder / "go").touch()
    until(lambda: dagster.run(retry.id).over, seconds=300, every=0.5)
    assert dagster.run(retry.id).status == "SUCCESS"
    assert dagster.run(lost.id).status == "FAILURE"
    assert lost.partition == retry.partition
    partition = retry.partition or ""
    assert [run["info"]["status"] for run in mlflow_runs(begun.environment, partition)] == (
        ["FINISHED"] if adopted else ["FINISHED", "KILLED"]
    )
    assert set(instances(begun.environment)) == {"terminated"}
    (model,) = dagster.materialisations(TRAINED_MODEL, partition=partition)
    assert model.run_id == retry.id
    assert (begun.folder / "begun").read_text() == "once\n" * (1 if adopted else 2)
    assert len(dagster.runs()) == 2


def test_the_second_serve_goes_on_with_what_the_killed_one_has_begun(tmp_path: Path) -> None:
    with Postgres() as server:
        settings = {"DAGSTER_POSTGRES_URL": server.url(server.new_database())}
        with green_build(tmp_path, settings) as begun, ExitStack() as stack:
            port = free_port()
            elsewhere = {**begun.environment, "DAGSTER_HOME": str(tmp_path / "second-home")}
            first = stack.enter_context(serving(tmp_path / "first", begun.environment, port=begun.stack.port))
            second = stack.enter_context(serving(tmp_path / "second", elsewhere, port=port))
            second.await_output("Standing by: ")
            begun.await_training()
            family = first.family()
            assert workers_of(first)
            assert "Taking over" not in second.output
            kill_all(family)  # as when the machine loses its power
            until(lambda: all_gone(family))
            until(lambda: "Taking over" in second.output, seconds=60)
            dagster = stack.enter_context(DagsterApi(f"http://127.0.0.1:{port}", token=begun.stack.dagster_token))
            assert_recorded_once(begun, dagster)
            assert server.query(
                "SELECT fence FROM orchestrator_lease", database=settings["DAGSTER_POSTGRES_URL"].rpartition("/")[2]
            ) == [(2,)]
            assert second.end() in (0, 143)


def checkout(commit: str, folder: Path) -> None:
    """The files of a commit of ours."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(PROJECT), "archive", commit], capture_output=True, check=False)
    if archive.returncode:
        pytest.fail(f"this is no clone that holds {commit[:7]}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)


def update(folder: Path) -> None:
    """The files of today in the place of those that were there, as `git pull` does it."""
    for name in ("orchestrator", "dagster.yaml", "workspace.yaml"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(PROJECT / name, path, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(PROJECT / name, path)


def test_todays_code_gives_back_what_the_first_version_has_begun_and_trains_the_build_again(tmp_path: Path) -> None:
    place = tmp_path / "checkout"
    checkout(OLD, place)
    with green_build(tmp_path, {}) as begun:
        (Path(begun.environment["DAGSTER_HOME"]) / "dagster.yaml").unlink()  # it links its own
        environment = {**begun.environment, "PYTHONPATH": str(place)}
        with serving(place, environment, port=begun.stack.port) as old:
            begun.await_training()
            workers = workers_of(old)
            assert workers
            assert old.end() in (0, 143)
        kill_all(workers)
        assert not (place / "orchestrator" / "storage").exists()
        update(place)
        with (
            serving(place, environment, port=begun.stack.port) as new,
            DagsterApi(begun.stack.dagster_url, token=begun.stack.dagster_token) as dagster,
        ):
            assert_recorded_once(begun, dagster, adopted=False)  # that version marked it in another way
            assert new.end() in (0, 143)
