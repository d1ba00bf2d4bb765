"""What a run may cost, use and last holds whoever launches it: sensor, backfill, launchpad; under `dagster dev`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from orchestrator import names
from orchestrator_sandbox.dagster_api import ASSET_PAGE_JOB, DagsterApi
from orchestrator_sandbox.stack import JOB, PIPELINE, TRAINED_MODEL, Stack
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

BUILDS = 3
CEILINGS = ("MAX_USD_PER_RUN", "MAX_USD_PER_DAY", "MAX_USD_PER_MONTH")
JOBS = (names.training_job(PIPELINE), ASSET_PAGE_JOB)
"""Of the launchpad, and of the asset's page."""

START_SECONDS = 180
END_SECONDS = 300


TOO_MUCH: Mapping[str, Mapping[str, object]] = {
    "instance_type p4d.24xlarge is none that may be used (t3.medium)": {"instance_type": "p4d.24xlarge"},
    "max_minutes 61 is more than MAX_TRAINING_MINUTES=60": {"max_minutes": 61.0},
}
"""Why it is refused → what the launchpad says."""


@dataclass(frozen=True)
class Story:
    """What was launched, each run after its end, in the words of its failure.

    Attributes:
        sensor: of the run that the sensor has launched, for the newest build.
        backfill: of each run of a backfill of the others.
        launchpad: job → of a run without more words.
        asked_for_more: job and what it said → of that run, and the step that has failed.
    """

    sensor: str
    backfill: Sequence[str]
    launchpad: Mapping[str, str]
    asked_for_more: Mapping[tuple[str, str], tuple[str, Sequence[str]]]


class Watcher:
    """Dagster's own server and daemon, and the folder in which the ceilings stand, which are read at each launch."""

    def __init__(self, dagster: DagsterApi, secrets: Path) -> None:
        self.dagster = dagster
        self._secrets = secrets

    def limit(self, ceiling: str, usd: float) -> None:
        """Set this ceiling, and no other."""
        for name in CEILINGS:
            (self._secrets / name).unlink(missing_ok=True)
        (self._secrets / ceiling).write_text(str(usd))

    def launched(self, partition: str) -> str:
        """Wait for the run of a build that somebody else launches; return its ID."""
        runs = until(partial(self.dagster.runs, partition=partition), seconds=START_SECONDS, every=0.3)
        return runs[-1].id

    def refusal(self, run_id: str) -> str:
        """Wait for a run's end, which must be a failure; return why."""
        until(lambda: self.dagster.run(run_id).over, seconds=END_SECONDS, every=0.3)
        assert self.dagster.run(run_id).status == "FAILURE"
        return self.dagster.failure(run_id) or ""

    def failed_steps(self, run_id: str) -> Sequence[str]:
        return [step.name for step in self.dagster.run(run_id).steps if step.status == "FAILURE"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    secrets = tmp_path_factory.mktemp("secrets")
    settings = {"ORCHESTRATOR_SECRETS_DIR": str(secrets), "MAX_TRAINING_MINUTES": "60"}
    with Stack(tmp_path_factory.mktemp("ceilings"), settings=settings) as stack:
        until(lambda: stack.jenkins.builds(JOB) and stack.jenkins.idle(), seconds=START_SECONDS, every=0.2)
        while len(stack.jenkins.builds(JOB)) < BUILDS:
            stack.jenkins.add_build(JOB, commit=stack.git.head())
        *past, newest = [str(build.number) for build in stack.jenkins.builds(JOB)]
        with DagsterApi(stack.dagster_url) as dagster:
            watcher = Watcher(dagster, secrets)
            watcher.limit("MAX_USD_PER_RUN", 0.04)  # a t3.medium for 61 min costs 0.042
            words = ("-w", str(PROJECT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(stack.port))
            server = stack.dagster_process("-m", "dagster", "dev", *words)
            server.await_http(f"{stack.dagster_url}/server_info", seconds=START_SECONDS)
            until(lambda: dagster.location_error() is None, seconds=START_SECONDS, every=0.3)
            sensor = watcher.refusal(watcher.launched(newest))
            until(lambda: {*past} <= {*dagster.partitions(TRAINED_MODEL)}, seconds=START_SECONDS, every=0.3)
            watcher.limit("MAX_USD_PER_DAY", 0.03)
            dagster.backfill(asset=TRAINED_MODEL, partitions=past)
            launch = partial(dagster.launch, asset=TRAINED_MODEL, partition=newest)
            more = {(job, why): launch(job=job, config=TOO_MUCH[why]) for job in JOBS for why in TOO_MUCH}
            asked_for_more = {key: (watcher.refusal(run), watcher.failed_steps(run)) for key, run in more.items()}
            backfill = [watcher.refusal(watcher.launched(partition)) for partition in past]
            watcher.limit("MAX_USD_PER_MONTH", 0.02)
            plain = {job: watcher.refusal(launch(job=job)) for job in JOBS}  # at once, the second finds the build busy
            yield Story(sensor, backfill, plain, asked_for_more)
        assert stack.ec2.instance_ids() == [], "nothing was launched"


def test_a_run_of_the_sensor_that_may_cost_too_much_is_refused(story: Story) -> None:
    assert "Refused to launch t3.medium: it may cost 0.042 USD (61 min at 0.0416 USD an hour)" in story.sensor
    assert "MAX_USD_PER_RUN=0.04 leaves 0.04" in story.sensor


def test_each_run_of_a_backfill_that_may_cost_too_much_is_refused(story: Story) -> None:
    assert len(story.backfill) == BUILDS - 1
    for reason in story.backfill:
        assert "MAX_USD_PER_DAY=0.03 leaves 0.03: 0.00 USD were spent on " in reason


@pytest.mark.parametrize("job", JOBS)
def test_what_the_launchpad_launches_that_may_cost_too_much_is_refused(story: Story, job: str) -> None:
    assert "MAX_USD_PER_MONTH=0.02 leaves 0.02: 0.00 USD were spent in " in story.launchpad[job]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("why", TOO_MUCH)
def test_another_machine_and_more_time_are_refused_before_anything_is_launched(
    story: Story, job: str, why: str
) -> None:
    reason, steps = story.asked_for_more[job, why]
    assert f"The launchpad's {why}" in reason
    assert steps == ["resolve"]
