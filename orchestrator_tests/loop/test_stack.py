"""The whole loop for real: Git, Jenkins, EC2 with SSH hosts, MLflow and Dagster, in one stack for all tests."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from rich.console import Console

from orchestrator.errors import SandboxError
from orchestrator.resources.jenkins.answers import Build
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.demo.display import DemoState, LineView
from orchestrator_sandbox.demo.loop import DemoLoop, OutputTail, present
from orchestrator_sandbox.demo.outcome import DemoOutcome, OutcomeReader
from orchestrator_sandbox.demo.project import Commit
from orchestrator_sandbox.stack import PIPELINE, TRAINED_MODEL, Stack
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

KEYS = (
    "pipeline partition commit dagster_run_id dagster_status mlflow_run_id mlflow_status metrics package instance_id "
    "instance_state seconds urls champion deployment"
)

LIGHT = """name: light
entry_points:
  main:
    command: "python train.py"
"""

LOGS_A_METRIC = """
import json, os, time, urllib.request
point = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "accuracy", "value": 0.5, "timestamp": int(time.time() * 1000)}
url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
urllib.request.urlopen(urllib.request.Request(url, json.dumps(point).encode(), {"Content-Type": "application/json"}))
print("trained lightly")
"""

COMMITS = {
    "broken": {"tests/test_model.py": "def test_it():\n    assert False\n"},
    "failing": {
        "tests/test_model.py": "def test_it():\n    pass\n",
        "MLproject": LIGHT,
        "train.py": "import sys\nprint('reading the data')\nprint('there is none', file=sys.stderr)\nsys.exit(1)\n",
    },
    "endless": {
        "train.py": "import signal\nprint('this takes a while', flush=True)\nsignal.alarm(3600)\nsignal.pause()\n"
    },
    "light": {"train.py": LOGS_A_METRIC},
}
"""Commits after the example itself: name → files. The last one is trained by the sensor, the others are the past."""


@dataclass(frozen=True)
class TrainedStack:
    """The stack after its newest build was trained.

    Attributes:
        builds: name of the commit → its build; `example` is the first one.
        first: what became of the newest.
        code: exit status of the demo that trained it.
        shown: what a user without a terminal has seen.
        printed: what was on standard output.
        asset_page: name of the commit → run that "Materialize" launched for its build.
    """

    stack: Stack
    loop: DemoLoop
    dagster: DagsterApi
    reader: OutcomeReader
    builds: dict[str, Build]
    first: DemoOutcome
    code: int
    shown: str
    printed: str
    asset_page: dict[str, str]

    def partition(self, name: str) -> str:
        return str(self.builds[name].number)

    def over(self, run_id: str) -> RunSummary:
        until(lambda: self.dagster.run(run_id).over, seconds=180, every=0.3)
        return self.dagster.run(run_id)

    def outcome(self, name: str, run: RunSummary) -> DemoOutcome:
        failure = None if run.status == "SUCCESS" else self.dagster.failure(run.id)
        return self.reader.outcome(PIPELINE, build=self.builds[name], run=run, failure=failure, seconds={})


def _commit(name: str) -> Commit:
    def edit(tree: Path) -> None:
        for path, text in COMMITS[name].items():
            (tree / path).write_text(text)

    return Commit(name, edit)


def _commands() -> dict[int, list[str]]:
    """Process → command line, of all that we have started."""
    commands = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            commands[process.pid] = process.cmdline()
    return commands


@contextmanager
def _no_process_left() -> Iterator[None]:
    before = _commands()
    yield
    assert [command for pid, command in _commands().items() if pid not in before] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedStack]:
    directory = tmp_path_factory.mktemp("stack")
    shown, printed = io.StringIO(), io.StringIO()
    with _no_process_left(), Stack(directory) as stack:
        loop = DemoLoop(stack, started=time.monotonic())
        commits = [_commit(name) for name in COMMITS]
        with redirect_stdout(printed):
            code = present(loop, Console(file=shown), commits=commits, once=True, as_json=True)
        dagster = DagsterApi(stack.dagster_url, token=stack.dagster_token)
        reader = OutcomeReader(stack.env(), dagster_url=stack.dagster_url)
        builds = dict(zip(["example", *COMMITS], reversed(reader.builds()), strict=True))
        partitions = {name: str(build.number) for name, build in builds.items()}
        dagster.backfill(asset=TRAINED_MODEL, partitions=[partitions["example"]])
        launched = {
            name: dagster.launch(asset=TRAINED_MODEL, partition=partitions[name])
            for name in ("endless", "failing", "light")
        }
        with dagster:
            texts = (shown.getvalue(), printed.getvalue())
            yield TrainedStack(stack, loop, dagster, reader, builds, loop.outcome, code, *texts, launched)


def test_the_newest_green_build_becomes_a_finished_run_one_materialisation_and_a_terminated_instance(
    world: TrainedStack,
) -> None:
    outcome = world.first
    assert outcome.faults() == []
    assert outcome.partition == world.partition("light")
    assert outcome.commit == world.stack.git.head()
    assert outcome.metrics == {"accuracy": 0.5}
    assert outcome.usd is not None
    assert outcome.usd > 0
    (recorded,) = world.dagster.materialisations(TRAINED_MODEL, partition=world.partition("light"))
    assert recorded.run_id == outcome.dagster_run_id
    assert outcome.mlflow_run_id in recorded.metadata.values()


def test_the_last_line_of_standard_output_is_the_promised_json(world: TrainedStack) -> None:
    assert world.code == 0
    summary = json.loads(world.printed.splitlines()[-1])
    assert summary == world.first.to_json()
    assert set(summary) == set(KEYS.split())
    assert {"sandbox", "dagster", "build", "provision", "train", "total"} <= set(summary["seconds"])
    assert set(summary["urls"]) == {"dagster", "dagster_run", "dagster_asset", "mlflow_run", "jenkins_build", "git"}
    for page in ("dagster", "dagster_run", "dagster_asset"):
        assert "Dagster" in requests.get(summary["urls"][page], timeout=60).text  # each holds the token


def test_without_a_terminal_the_story_is_told_line_by_line(world: TrainedStack) -> None:
    lines = world.shown.splitlines()
    assert f"Jenkins: build {world.partition('broken')} of {world.builds['broken'].commit[:8]} is FAILURE" in lines  # type: ignore[index]
    assert "  | trained lightly" in lines
    assert lines.index(f"Watch it in Dagster's UI: {world.stack.dagster_page()}") < lines.index("  | trained lightly")
    assert any(re.fullmatch(r"Dagster: run \w{8}, step train: SUCCESS in \d+\.\d s", line) for line in lines)
    assert f"MLflow run: {world.first.mlflow_run_id} FINISHED" in lines
    assert lines[-1] == "Stopping everything"


def test_a_red_build_trains_nothing_and_past_green_ones_wait_for_a_backfill(world: TrainedStack) -> None:
    assert world.builds["broken"].result == "FAILURE"
    green = [world.partition(name) for name in ("example", "failing", "endless", "light")]
    assert sorted(world.dagster.partitions(TRAINED_MODEL)) == sorted(green)
    assert [run.partition for run in world.dagster.runs()][-1] == world.partition("light")


def test_a_backfill_trains_a_past_build(world: TrainedStack) -> None:
    partition = world.partition("example")
    (run,) = until(lambda: world.dagster.runs(partition=partition), every=0.3)
    outcome = world.outcome("example", world.over(run.id))
    assert outcome.faults() == []
    assert outcome.commit == world.builds["example"].commit
    assert outcome.metrics["accuracy"] > 0.9


def test_materialising_from_the_asset_page_behaves_as_a_run_of_the_job(world: TrainedStack) -> None:
    outcome = world.outcome("light", world.over(world.asset_page["light"]))
    assert outcome.faults() == []
    assert outcome.commit == world.first.commit
    assert outcome.mlflow_run_id != world.first.mlflow_run_id
    assert set(world.first.seconds) - set(outcome.seconds) == {"sandbox", "dagster", "wait", "total"}


def test_a_training_that_exits_1_ends_red_with_its_last_lines_and_the_instance_terminated(world: TrainedStack) -> None:
    run = world.over(world.asset_page["failing"])
    outcome = world.outcome("failing", run)
    assert (run.status, outcome.mlflow_status, outcome.instance_state) == ("FAILURE", "FAILED", "terminated")
    assert outcome.failure is not None
    assert "reading the data" in outcome.failure
    assert "there is none" in outcome.failure
    assert "Traceback" not in outcome.failure
    assert world.dagster.materialisations(TRAINED_MODEL, partition=world.partition("failing")) == []


def test_cancelling_while_it_trains_terminates_the_instance_and_kills_the_training(world: TrainedStack) -> None:
    run_id = world.asset_page["endless"]
    until(lambda: "this takes a while" in OutputTail(world.dagster, run_id).read(), seconds=120, every=0.3)
    training = world.reader.training(run_id)
    assert training is not None
    instance = training.tags["ec2.instance_id"]
    world.dagster.cancel(run_id)
    until(lambda: world.reader.instance_state(instance) == "terminated", every=0.3)
    outcome = world.outcome("endless", world.over(run_id))
    assert (outcome.dagster_status, outcome.mlflow_status) == ("CANCELED", "KILLED")
    assert [command for command in _commands().values() if "train.py" in command] == []


class Enough(Exception):
    """The user has seen it."""


class OneLook(LineView):
    """Keeps the first scene, and ends the show."""

    seen: DemoState

    def show(self, scene: DemoState) -> None:
        self.seen = scene
        raise Enough


def test_the_commands_that_the_demo_shows_push_a_commit_that_jenkins_builds(
    world: TrainedStack, tmp_path: Path
) -> None:
    view = OneLook(Console(file=io.StringIO()))
    with pytest.raises(Enough):
        world.loop.go_on(view)
    commands = [line for line in "\n".join(view.seen.hints).splitlines() if line.startswith("  ")]
    done = subprocess.run(["sh", "-ec", "\n".join(commands)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert world.stack.git.head() != world.first.commit
    until(lambda: any(build.commit == world.stack.git.head() for build in world.reader.builds()))


def test_a_second_sandbox_in_the_same_folder_is_refused(world: TrainedStack) -> None:
    with pytest.raises(SandboxError, match=r"process \d+ runs a sandbox in .*; stop it, or choose another folder"):
        Stack(world.stack.directory)
    assert world.stack.git.head()  # it is not disturbed
