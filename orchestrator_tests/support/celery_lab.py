"""The whole loop on Celery, with a fault in a phase of a build's run; for test_celery.py and the matrix."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.checks import BuildFacts, violations
from orchestrator_sandbox.chaos.faults import FaultInjector
from orchestrator_sandbox.chaos.lab import FaultLab
from orchestrator_sandbox.chaos.plan import FaultKind, PlannedFault
from orchestrator_sandbox.processes.child import ChildProcess
from orchestrator_sandbox.stack import JOB
from orchestrator_tests.support.celery_workers import RedisServer, kill_all_of
from orchestrator_tests.support.postgres import Postgres
from orchestrator_tests.support.waiting import until

WORKERS = 2
SLOTS = 2
PHASE_SECONDS = 300
SETTLED_SECONDS = 600

_log = logging.getLogger(__name__)


@dataclass
class CeleryLab:
    """The sandbox on a PostgreSQL, whose runs live on two workers of two slots each."""

    lab: FaultLab
    redis: RedisServer
    postgres: Postgres
    database: str
    dagster: AttemptsApi
    workers: list[ChildProcess] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=itertools.count)

    def start_worker(self) -> None:
        name = f"w{next(self.names)}"
        words = ("-m", "orchestrator.cli", "worker", "--slots", str(SLOTS), "--name", name)
        worker = self.lab.stack.dagster_process(*words)
        self.workers.append(worker)
        until(lambda: f"{name}@" in _ready_lines(worker) or not worker.alive(), seconds=180, every=0.3)
        assert worker.alive(), worker.tail(40)

    def green_build(self) -> str:
        return str(self.lab.stack.jenkins.add_build(JOB, commit=self.lab.stack.git.head()).number)

    @contextmanager
    def in_phase(self, phase: str, kind: FaultKind) -> Iterator[DagsterAttempt]:
        """A build's run in this phase, which lasts as long as the context where it is short."""
        fault = PlannedFault(index=0, kind=kind, phase=phase, after=0, seconds=0, times=1)
        partition = self.green_build()
        with FaultInjector(self.lab).held(fault, partition):
            met = until(lambda: self._in_step(partition, phase), seconds=PHASE_SECONDS, every=0.1)
            assert met is not None
            yield met

    def worker_of(self, attempt: DagsterAttempt) -> ChildProcess:
        """The worker that executes a run."""
        process = self.dagster.worker(attempt.id)
        assert process is not None
        parent = psutil.Process(process).ppid()
        return next(worker for worker in self.workers if worker.alive() and worker.pid == parent)

    def kill_worker_of(self, attempt: DagsterAttempt) -> str:
        """End the worker of a run as the loss of its machine does, and return the build."""
        worker = self.worker_of(attempt)
        kill_all_of(worker.pid)
        worker.close()
        self.workers.remove(worker)
        return attempt.partition

    def steps_written_twice(self) -> list[Any]:
        """Steps of which a run's log says more than once that they began, or that they succeeded."""
        return self.postgres.query(
            "SELECT run_id, step_key, dagster_event_type FROM event_logs WHERE dagster_event_type LIKE 'STEP_S%' "
            "GROUP BY 1, 2, 3 HAVING count(*) > 1",
            database=self.database,
        )

    def settled(self, partition: str, kind: FaultKind | None) -> BuildFacts:
        """What there is of a build, when nothing of it is under way and nothing is left."""

        def over() -> bool:
            try:
                attempts = self.dagster.attempts(partition)
                return (
                    bool(attempts)
                    and not any(attempt.live for attempt in attempts)
                    and all(instance.partition != partition for instance in self.lab.instances())
                    and partition not in self.lab.open_mlflow_runs().values()
                )
            except (DagsterDown, SandboxError):
                return False

        until(over, seconds=SETTLED_SECONDS, every=1)
        _log.info("Build %s has come to rest", partition)
        facts = self.lab.facts(self.dagster, partition)
        # Processes of other builds' machines are theirs.
        return dataclasses.replace(facts, kind=kind, settled=True, left_processes=())

    def _in_step(self, partition: str, step: str) -> DagsterAttempt | None:
        try:
            attempts = self.dagster.under_way()
        except DagsterDown:
            return None
        return next((found for found in attempts if found.partition == partition and found.step == step), None)


@contextmanager
def celery_lab(directory: Path) -> Iterator[CeleryLab]:
    """Start everything, and train the first commit."""
    with RedisServer(directory / "redis") as redis, Postgres() as postgres:
        database = postgres.new_database()
        settings = {"CELERY_BROKER_URL": redis.url, "DAGSTER_POSTGRES_URL": postgres.url(database)}
        with FaultLab(directory / "lab", settings=settings) as lab, lab.dagster() as dagster:
            cluster = CeleryLab(lab, redis, postgres, database, dagster)
            for _ in range(WORKERS):
                cluster.start_worker()
            until(lab.stack.jenkins.idle, seconds=120)
            first = str(lab.stack.jenkins.builds(JOB)[0].number)
            assert violations(cluster.settled(first, None)) == []
            yield cluster


def _ready_lines(worker: ChildProcess) -> str:
    return "".join(line for line in worker.log.read_text(errors="replace").splitlines() if line.endswith(" ready."))
