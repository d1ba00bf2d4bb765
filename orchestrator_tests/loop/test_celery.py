"""The whole loop on Celery and PostgreSQL: a worker is lost, a run is cancelled, Redis or PostgreSQL is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from orchestrator.names import Step
from orchestrator_sandbox.chaos.checks import BuildFacts, violations
from orchestrator_sandbox.chaos.plan import FaultKind
from orchestrator_tests.support.celery_lab import WORKERS, CeleryLab, celery_lab
from orchestrator_tests.support.celery_workers import RedisServer
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until

AWAY_SECONDS = 10
LONG_AWAY_SECONDS = 60

_log = logging.getLogger(__name__)
"""What is done when: `--log-file=matrix.log --log-file-level=INFO --log-file-format="%(asctime)s %(message)s"`."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CeleryLab]:
    with celery_lab(tmp_path_factory.mktemp("celery-loop")) as cluster:
        yield cluster


def lose_a_worker(cluster: CeleryLab, phase: str) -> str:
    with cluster.in_phase(phase, FaultKind.WORKER_KILLED) as attempt:
        cluster.kill_worker_of(attempt)
        _log.info("Killed the worker of build %s in phase %s", attempt.partition, phase)
    return attempt.partition


def cancel(cluster: CeleryLab, phase: str) -> str:
    with cluster.in_phase(phase, FaultKind.CANCELLED) as attempt:
        _log.info("Cancelling build %s in phase %s", attempt.partition, phase)
        cluster.dagster.cancel(attempt.id)
        until(lambda: cluster.dagster.run(attempt.id).status != "CANCELING", seconds=30, every=0.3)
        _log.info("Cancelled build %s", attempt.partition)
    return attempt.partition


def take_away(server: RedisServer | Postgres, cluster: CeleryLab, phase: str, *, seconds: float) -> tuple[str, str]:
    """Return the build that is trained meanwhile, and one that becomes green meanwhile.

    A Redis that comes back knows nothing.
    """
    with cluster.in_phase(phase, FaultKind.DAEMON_KILLED) as attempt:
        _log.info("Taking %s away from build %s in phase %s", type(server).__name__, attempt.partition, phase)
        server.stop()
        back = time.monotonic() + seconds
    queued = cluster.green_build()
    until(lambda: time.monotonic() >= back, seconds=2 * seconds)
    server.start()
    _log.info("%s is back; build %s became green meanwhile", type(server).__name__, queued)
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
def test_a_lost_worker_a_cancel_and_servers_that_are_away_cost_no_build_and_no_step_is_done_twice(
    cluster: CeleryLab,
) -> None:
    lost = lose_a_worker(cluster, Step.TRAIN)
    cancelled = [cancel(cluster, Step.TRAIN), cancel(cluster, Step.RECORD)]
    unharmed = [
        *take_away(cluster.redis, cluster, Step.TRAIN, seconds=AWAY_SECONDS),
        *take_away(cluster.postgres, cluster, Step.TRAIN, seconds=AWAY_SECONDS),
    ]
    for partition in cancelled:
        assert_cancelled(cluster.settled(partition, FaultKind.CANCELLED))
    for partition in unharmed:
        assert_trained_once(cluster.settled(partition, None))
    assert_adopted(cluster.settled(lost, FaultKind.WORKER_KILLED))
    assert cluster.steps_written_twice() == []


@dataclass(frozen=True)
class Harmed:
    """The builds of one phase: what was cancelled, what lost its worker, what an absent server left alone."""

    cancelled: str
    lost: str
    unharmed: tuple[str, ...]


@pytest.fixture(scope="module")
def harmed(cluster: CeleryLab, request: pytest.FixtureRequest) -> dict[str, Harmed]:
    """All phases before any is looked at, because a lost worker's build waits for minutes until it is adopted."""
    chosen = {item.name for item in request.session.items}
    builds = {}
    for phase in Step.ALL:
        if f"test_matrix[{phase}]" not in chosen:
            continue
        unharmed: list[str] = []
        for server in (cluster.redis, cluster.postgres):
            unharmed += take_away(server, cluster, phase, seconds=LONG_AWAY_SECONDS)
        for partition in unharmed:
            cluster.settled(partition, None)  # else the worker that is killed next may be theirs
        while len(cluster.workers) < WORKERS:
            cluster.start_worker()
        builds[phase] = Harmed(cancel(cluster, phase), lose_a_worker(cluster, phase), tuple(unharmed))
    return builds


@pytest.mark.matrix
@pytest.mark.parametrize("phase", Step.ALL)
def test_matrix(cluster: CeleryLab, harmed: dict[str, Harmed], phase: str) -> None:
    builds = harmed[phase]
    assert_cancelled(cluster.settled(builds.cancelled, FaultKind.CANCELLED))
    assert_adopted(cluster.settled(builds.lost, FaultKind.WORKER_KILLED))
    for partition in builds.unharmed:
        assert_trained_once(cluster.settled(partition, None))
    assert cluster.steps_written_twice() == []
