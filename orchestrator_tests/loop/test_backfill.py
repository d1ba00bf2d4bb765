"""A backfill of many builds under a limit of instances that is changed while it runs; real queue, real machines."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests

from orchestrator.operate.serve import limit_instances
from orchestrator_sandbox.chaos.attempts import LIVE
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.stack import JOB, TRAINED_MODEL, Stack
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.waiting import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.literals import InstanceStateNameType
    from mypy_boto3_ec2.type_defs import FilterTypeDef

pytestmark = pytest.mark.services

LIMIT, LOWERED, RAISED = 4, 2, 5
FLOW = 6
"""So many trainings pass between two changes of the limit."""

SAMPLE_SECONDS = 0.2
DEADLINE_SECONDS = 600.0

PROGRAM = '''#!{python} -ISu
"""Fills the run of --run-id, as `mlflow run` would, and passes a gate before its end."""

import fcntl, json, os, pathlib, sys, time, urllib.request

run = sys.argv[sys.argv.index("--run-id") + 1]
directory = pathlib.Path({directory!r})


def call(endpoint, **fields):
    url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/" + endpoint
    data = json.dumps(dict(run_id=run, **fields)).encode()
    urllib.request.urlopen(urllib.request.Request(url, data, {{"Content-Type": "application/json"}}), timeout=60)


call("log-metric", key="accuracy", value=1.0, timestamp=time.time_ns() // 1000000)
(directory / "came" / run).touch()
with open(directory / "gate") as gate:
    fcntl.flock(gate, fcntl.LOCK_SH)
    (directory / "passed" / run).touch()
call("update", status="FINISHED", end_time=time.time_ns() // 1000000)
'''


class CountingGate(Gate):
    """Tells who stands before it; while it is closed, a full pool stays full for as long as we look.

    Attributes:
        program: the training, in place of `mlflow`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in ("came", "passed"):
            (directory / name).mkdir(parents=True)
        self.program = directory / "mlflow"
        self.program.write_text(PROGRAM.format(python=sys.executable, directory=str(directory)))
        self.program.chmod(0o755)
        super().__init__(directory / "gate")

    def held(self) -> int:
        """How many stand before it; when it is closed, for as long as it is."""
        return len(self._came() - self._passed())

    def passed(self) -> int:
        """How many have passed since the beginning."""
        return len(self._passed())

    def _came(self) -> set[str]:
        return {file.name for file in (self._directory / "came").iterdir()}

    def _passed(self) -> set[str]:
        return {file.name for file in (self._directory / "passed").iterdir()}


@dataclass(frozen=True)
class Level:
    """How many there were, from this moment on.

    Attributes:
        at: seconds since the epoch.
    """

    at: float
    count: int


def levels(runs: Sequence[RunSummary]) -> list[Level]:
    """How many runs were under way, at each moment that one began or ended; by Dagster's own books."""
    changes = sorted(
        [(run.started, 1) for run in runs if run.started is not None]
        + [(run.ended, -1) for run in runs if run.ended is not None]
    )
    counts = itertools.accumulate(change for _, change in changes)
    return [Level(0, 0), *(Level(at, count) for (at, _), count in zip(changes, counts, strict=True))]


def risen_to(levels: Sequence[Level], *, since: float = 0, before: float = float("inf")) -> int:
    """The greatest number that was come to from below; one that only has not sunk yet does not count."""
    return max(
        level.count
        for earlier, level in itertools.pairwise(levels)
        if level.count > earlier.count and since <= level.at < before
    )


@contextmanager
def counted(ec2: EC2Client) -> Iterator[list[Level]]:
    """Ask EC2 again and again how many instances are alive; the newest answer is the last."""
    seen = [Level(time.time(), 0)]
    ended = threading.Event()

    def count() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            alive = len(instances(ec2, "pending", "running"))
            seen.append(Level(time.time(), alive))

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count)
        try:
            yield seen
        finally:
            ended.set()
            counting.result()


def instances(ec2: EC2Client, *states: InstanceStateNameType) -> list[tuple[str, str]]:
    """Build and state of every instance that there ever was, or of those in one of these states."""
    only: list[FilterTypeDef] = [{"Name": "instance-state-name", "Values": states}] if states else []
    return [
        (next(tag["Value"] for tag in raw["Tags"] if tag["Key"] == "orchestrator:partition"), raw["State"]["Name"])
        for page in ec2.get_paginator("describe_instances").paginate(Filters=only)
        for group in page["Reservations"]
        for raw in group["Instances"]
    ]


def wait(dagster: DagsterApi, condition: Callable[[], bool]) -> None:
    """Wait until it is so; a run that fails ends the waiting, and the test."""

    def failed() -> list[RunSummary]:
        return dagster.runs(statuses=("FAILURE", "CANCELED"))

    until(lambda: condition() or failed(), seconds=DEADLINE_SECONDS, every=0.5)
    assert [dagster.failure(run.id) for run in failed()] == []


@dataclass(frozen=True)
class Story:
    """The backfill, after its end.

    Attributes:
        partitions: the builds of the backfill, and the newest one, which the sensor has launched itself.
        runs: all that Dagster launched.
        alive: how many instances EC2 told of.
        under_way: how many runs were, by Dagster's books.
        lowered: when the limit was lowered, in seconds since the epoch; likewise `raised`.
    """

    stack: Stack
    dagster: DagsterApi
    ec2: EC2Client
    partitions: list[str]
    runs: list[RunSummary]
    alive: list[Level]
    under_way: list[Level]
    lowered: float
    raised: float

    def mlflow_runs(self) -> list[dict[str, Any]]:
        body = {"experiment_ids": [self.stack.env()["MLFLOW_EXPERIMENT_ID"]], "max_results": 1000}
        answer = requests.post(f"{self.stack.mlflow.url}/api/2.0/mlflow/runs/search", json=body, timeout=60)
        answer.raise_for_status()
        return list(answer.json()["runs"])


@pytest.fixture(scope="module", params=[22, pytest.param(50, marks=pytest.mark.matrix)])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    past = int(request.param)
    with CountingGate(tmp_path_factory.mktemp("gate")) as gate:
        yield from backfilled(tmp_path_factory.mktemp("backfill"), gate, past)


def backfilled(directory: Path, gate: CountingGate, past: int) -> Iterator[Story]:
    settings = {"MAX_INSTANCES": str(LIMIT), "READY_WHEN": "ssh", "MLFLOW_COMMAND": str(gate.program)}
    with Stack(directory, settings=settings) as stack:
        until(lambda: stack.jenkins.builds(JOB) and stack.jenkins.idle(), seconds=DEADLINE_SECONDS, every=0.2)
        while len(stack.jenkins.builds(JOB)) < past + 1:
            stack.jenkins.add_build(JOB, commit=stack.git.head())
        partitions = [str(build.number) for build in stack.jenkins.builds(JOB)]
        env = stack.env()
        ec2 = boto3.client(
            "ec2",
            region_name=env["AWS_DEFAULT_REGION"],
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )
        dagster = stack.start_dagster()
        with counted(ec2) as alive:

            def full(limit: int) -> bool:
                return gate.held() >= limit and alive[-1].count >= limit

            wait(dagster, lambda: len(dagster.partitions(TRAINED_MODEL)) > past)
            dagster.backfill(asset=TRAINED_MODEL, partitions=partitions[:-1])
            wait(dagster, lambda: full(LIMIT))
            gate.open()
            wait(dagster, lambda: gate.passed() >= FLOW)
            gate.close()
            wait(dagster, lambda: full(LIMIT))
            # The pool is full and stays so, which means that the queue has nothing on its way under the old limit.
            limit_instances(stack.directory / "dagster", LOWERED)
            lowered = time.time()
            gate.open()
            wait(dagster, lambda: gate.passed() >= 2 * FLOW)
            gate.close()
            wait(dagster, lambda: full(LOWERED))
            raised = time.time()
            limit_instances(stack.directory / "dagster", RAISED)
            wait(dagster, lambda: full(RAISED))
            gate.open()
            wait(dagster, lambda: gate.passed() > past and not dagster.runs(statuses=LIVE, limit=1))
        runs = dagster.runs(limit=1000)
        yield Story(stack, dagster, ec2, partitions, runs, alive, levels(runs), lowered, raised)


def test_a_backfill_never_has_more_instances_than_max_instances(story: Story) -> None:
    assert risen_to(story.under_way, before=story.lowered) == LIMIT
    assert risen_to(story.alive, before=story.lowered) == LIMIT


def test_a_limit_that_is_lowered_holds_as_soon_as_what_ran_has_ended(story: Story) -> None:
    assert risen_to(story.under_way, since=story.lowered, before=story.raised) == LOWERED
    assert risen_to(story.alive, since=story.lowered, before=story.raised) == LOWERED


def test_a_limit_that_is_raised_is_made_use_of_at_once(story: Story) -> None:
    assert risen_to(story.under_way, since=story.raised) == RAISED
    assert risen_to(story.alive, since=story.raised) == RAISED


def test_every_build_is_trained_exactly_once_and_no_instance_is_left(story: Story) -> None:
    assert len(story.partitions) > 22
    assert Counter((run.partition, run.status) for run in story.runs) == Counter(
        (partition, "SUCCESS") for partition in story.partitions
    )
    recorded = {
        run.id: [
            record.run_id for record in story.dagster.materialisations(TRAINED_MODEL, partition=run.partition or "")
        ]
        for run in story.runs
    }
    assert recorded == {run.id: [run.id] for run in story.runs}
    trained = [
        (tag["value"], run["info"]["status"])
        for run in story.mlflow_runs()
        for tag in run["data"]["tags"]
        if tag["key"] == "orchestrator.partition"
    ]
    assert Counter(trained) == Counter((partition, "FINISHED") for partition in story.partitions)
    assert Counter(instances(story.ec2)) == Counter((partition, "terminated") for partition in story.partitions)
