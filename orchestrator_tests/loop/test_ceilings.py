"""What a run may cost, use and last holds whoever launches it: sensor, backfill, launchpad; under `dagster dev`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
LAUNCHPAD = names.training_job(PIPELINE)
START_SECONDS = 180
END_SECONDS = 300


@dataclass(frozen=True)
class Watched:
    """Dagster's own server and daemon, and the folder in which the ceilings stand, which are read at each launch."""

    stack: Stack
    dagster: DagsterApi
    secrets: Path

    def limit(self, ceiling: str, usd: float) -> None:
        """Set this ceiling, and no other."""
        for name in CEILINGS:
            (self.secrets / name).unlink(missing_ok=True)
        (self.secrets / ceiling).write_text(str(usd))

    def refusal(self, run_id: str) -> str:
        """Wait for a run's end, which must be a failure; return why."""
        until(lambda: self.dagster.run(run_id).over, seconds=END_SECONDS, every=0.3)
        assert self.dagster.run(run_id).status == "FAILURE"
        return self.dagster.failure(run_id) or ""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    secrets = tmp_path_factory.mktemp("secrets")
    settings = {"ORCHESTRATOR_SECRETS_DIR": str(secrets), "MAX_TRAINING_MINUTES": "60"}
    with Stack(tmp_path_factory.mktemp("ceilings"), settings=settings) as stack:
        until(lambda: stack.jenkins.builds(JOB) and stack.jenkins.idle(), seconds=START_SECONDS, every=0.2)
        while len(stack.jenkins.builds(JOB)) < BUILDS:
            stack.jenkins.add_build(JOB, commit=stack.git.head())
        api = DagsterApi(stack.dagster_url)
        watched = Watched(stack, api, secrets)
        watched.limit("MAX_USD_PER_RUN", 0.04)  # a t3.medium for 61 min costs 0.042
        workspace = str(PROJECT / "workspace.yaml")
        child = stack.dagster_process("-m", "dagster", "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(stack.port))
        child.await_http(f"{stack.dagster_url}/server_info", seconds=START_SECONDS)
        with api:
            until(lambda: api.location_error() is None, seconds=START_SECONDS, every=0.3)
            yield watched
        assert stack.ec2.instance_ids() == [], "nothing was launched"


def test_a_run_of_the_sensor_that_may_cost_too_much_is_refused(watched: Watched) -> None:
    runs = until(watched.dagster.runs, seconds=START_SECONDS, every=0.3)
    reason = watched.refusal(runs[0].id)
    assert "Refused to launch t3.medium: it may cost 0.042 USD (61 min at 0.0416 USD an hour)" in reason
    assert "MAX_USD_PER_RUN=0.04 leaves 0.04" in reason
    assert runs[0].partition == str(watched.stack.jenkins.builds(JOB)[-1].number)


def test_each_run_of_a_backfill_that_may_cost_too_much_is_refused(watched: Watched) -> None:
    watched.limit("MAX_USD_PER_DAY", 0.03)
    partitions = [str(build.number) for build in watched.stack.jenkins.builds(JOB)][:-1]
    until(lambda: set(partitions) <= set(watched.dagster.partitions(TRAINED_MODEL)), seconds=START_SECONDS, every=0.3)
    watched.dagster.backfill(asset=TRAINED_MODEL, partitions=partitions)
    for partition in partitions:
        (run, *_) = until(partial(watched.dagster.runs, partition=partition), seconds=START_SECONDS, every=0.3)
        reason = watched.refusal(run.id)
        assert "MAX_USD_PER_DAY=0.03 leaves 0.03: 0.00 USD were spent on " in reason


@pytest.mark.parametrize("job", [LAUNCHPAD, ASSET_PAGE_JOB])
def test_what_the_launchpad_launches_that_may_cost_too_much_is_refused(watched: Watched, job: str) -> None:
    watched.limit("MAX_USD_PER_MONTH", 0.02)
    run_id = watched.dagster.launch(asset=TRAINED_MODEL, partition=newest(watched), job=job)
    assert "MAX_USD_PER_MONTH=0.02 leaves 0.02: 0.00 USD were spent in " in watched.refusal(run_id)


@pytest.mark.parametrize("job", [LAUNCHPAD, ASSET_PAGE_JOB])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"instance_type": "p4d.24xlarge"}, "instance_type p4d.24xlarge is none that may be used (t3.medium)"),
        ({"max_minutes": 61.0}, "max_minutes 61 is more than MAX_TRAINING_MINUTES=60"),
    ],
)
def test_another_machine_and_more_time_are_refused(
    watched: Watched, job: str, config: Mapping[str, object], reason: str
) -> None:
    run_id = watched.dagster.launch(asset=TRAINED_MODEL, partition=newest(watched), job=job, config=config)
    assert f"The launchpad's {reason}" in watched.refusal(run_id)
    failed = [step.name for step in watched.dagster.run(run_id).steps if step.status == "FAILURE"]
    assert failed == ["resolve"], "before anything is launched"


def newest(watched: Watched) -> str:
    return str(watched.stack.jenkins.builds(JOB)[-1].number)
