"""The whole loop on Celery: a worker is lost, a run is cancelled, Redis is away, each while a build is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from orchestrator.names import Step
from orchestrator_sandbox.chaos.checks import BuildFacts, violations
from orchestrator_sandbox.chaos.plan import FaultKind
from orchestrator_tests.support.celery_lab import CeleryLab, celery_lab
from orchestrator_tests.support.waiting import until

AWAY_SECONDS = 10
LONG_AWAY_SECONDS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryLab]:
    with celery_lab(tmp_path_factory.mktemp("celery-loop")) as cluster:
        yield cluster


def lose_a_worker(cluster: CeleryLab, phase: str) -> str:
    with cluster.in_phase(phase, FaultKind.WORKER_KILLED) as attempt:
        cluster.kill_worker_of(attempt)
    return attempt.partition


def cancel(cluster: CeleryLab, phase: str) -> str:
    with cluster.in_phase(phase, FaultKind.CANCELLED) as attempt:
        cluster.dagster.cancel(attempt.id)
        until(lambda: cluster.dagster.run(attempt.id).status != "CANCELING", seconds=30, every=0.3)
    return attempt.partition


def take_redis_away(cluster: CeleryLab, phase: str, *, seconds: float) -> tuple[str, str]:
    """Return the build that is trained meanwhile, and one that becomes green meanwhile."""
    with cluster.in_phase(phase, FaultKind.DAEMON_KILLED) as attempt:
        cluster.redis.stop()
        back = time.monotonic() + seconds
    queued = cluster.green_build()
    until(lambda: time.monotonic() >= back, seconds=2 * seconds)
    cluster.redis.start()  # and it knows nothing
    return attempt.partition, queued


def statuses(facts: BuildFacts) -> list[str]:
    return [attempt.status for attempt in facts.attempts]


def assert_adopted(facts: BuildFacts) -> None:
    assert violations(facts) == []
    *lost, last = statuses(facts)  # in the matrix the next worker may be lost, too
    assert (set(lost), last) == ({"FAILURE"}, "SUCCESS")


def assert_cancelled(facts: BuildFacts) -> None:
    assert violations(facts) == []
    assert statuses(facts) == ["CANCELED"]


def assert_trained_once(facts: BuildFacts) -> None:
    assert violations(facts) == []
    assert statuses(facts) == ["SUCCESS"]


@pytest.mark.services
def test_a_lost_worker_a_cancel_and_a_redis_that_is_away_cost_no_build_and_no_step_is_done_twice(
    cluster: CeleryLab,
) -> None:
    lost = lose_a_worker(cluster, Step.TRAIN)
    cancelled = [cancel(cluster, Step.TRAIN), cancel(cluster, Step.RECORD)]
    through, queued = take_redis_away(cluster, Step.TRAIN, seconds=AWAY_SECONDS)
    for partition in cancelled:
        assert_cancelled(cluster.settled(partition, FaultKind.CANCELLED))
    for partition in (through, queued):
        assert_trained_once(cluster.settled(partition, None))
    assert_adopted(cluster.settled(lost, FaultKind.WORKER_KILLED))


@dataclass(frozen=True)
class Harmed:
    """The builds of one phase: what was cancelled, what lost its worker, what Redis left alone and what it kept."""

    cancelled: str
    lost: str
    through: str
    queued: str


@pytest.fixture(scope="module")
def harmed(cluster: CeleryLab) -> dict[str, Harmed]:
    builds = {}
    for phase in Step.ALL:
        cancelled, lost = cancel(cluster, phase), lose_a_worker(cluster, phase)
        cluster.start_worker()
        through, queued = take_redis_away(cluster, phase, seconds=LONG_AWAY_SECONDS)
        builds[phase] = Harmed(cancelled, lost, through, queued)
    return builds


@pytest.mark.matrix
@pytest.mark.parametrize("phase", Step.ALL)
def test_matrix(cluster: CeleryLab, harmed: dict[str, Harmed], phase: str) -> None:
    builds = harmed[phase]
    assert_cancelled(cluster.settled(builds.cancelled, FaultKind.CANCELLED))
    assert_adopted(cluster.settled(builds.lost, FaultKind.WORKER_KILLED))
    for partition in (builds.through, builds.queued):
        assert_trained_once(cluster.settled(partition, None))
