"""Observes a campaign: which attempts are under way, and what has had no live attempt for how long."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.lab import FaultLab

LOOK_SECONDS = 0.4
ORPHANS_SECONDS = 2.0


class OrphanClock:
    """Times how long each thing is an orphan, and keeps the longest time of each build."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, str]] = {}
        self._longest: dict[str, float] = defaultdict(float)

    def update(self, orphans: Iterable[tuple[str, str]], now: float) -> None:
        """Note what is an orphan now.

        Args:
            orphans: each thing, and the build that it belongs to.
            now: seconds, by any clock that only grows.
        """
        self._since = {thing: (self._since.get(thing, (now, ""))[0], build) for thing, build in orphans}
        for since, build in self._since.values():
            self._longest[build] = max(self._longest[build], now - since)

    def longest(self, build: str) -> float:
        """The longest time that something of this build was an orphan, in seconds."""
        return self._longest[build]


class Observer:
    """Looks at Dagster, EC2 and MLflow again and again, in a thread, until it is closed.

    Args:
        lab: what it looks at.
    """

    def __init__(self, lab: FaultLab) -> None:
        self._lab = lab
        self._orphans = OrphanClock()
        self._unattended = OrphanClock()
        self._workers: dict[str, int] = {}
        self._under_way: dict[str, DagsterAttempt] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._observe, name="observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def attempt(self, partition: str) -> DagsterAttempt | None:
        """The attempt at this build that is under way; the newest of several."""
        return self._under_way.get(partition)

    def orphaned_seconds(self, partition: str) -> float:
        """The longest time that something of this build had no live attempt."""
        return self._orphans.longest(partition)

    def unattended_seconds(self, partition: str) -> float:
        """The longest time that no living process looked after something of this build, whatever Dagster believed."""
        return self._unattended.longest(partition)

    def _observe(self) -> None:
        due = 0.0
        with self._lab.dagster() as dagster:
            while not self._closing.wait(LOOK_SECONDS):
                try:
                    self._under_way = {attempt.partition: attempt for attempt in dagster.under_way()}
                    if time.monotonic() >= due:
                        self._time_orphans(dagster)
                        due = time.monotonic() + ORPHANS_SECONDS
                except (DagsterDown, SandboxError, BotoCoreError, ClientError):
                    continue  # it has just been killed: what was observed last still counts

    def _time_orphans(self, dagster: AttemptsApi) -> None:
        things = {instance.id: instance.partition for instance in self._lab.instances()}
        things |= self._lab.open_mlflow_runs()
        # Asked last: an attempt that ended meanwhile must not look as if it had left something.
        under_way = dagster.under_way()
        live = {attempt.partition for attempt in (*under_way, *dagster.retries_due())}
        attended = {attempt.partition for attempt in under_way if self._has_worker(dagster, attempt)}
        now = time.monotonic()
        self._orphans.update(((thing, build) for thing, build in things.items() if build not in live), now)
        self._unattended.update(((thing, build) for thing, build in things.items() if build not in attended), now)

    def _has_worker(self, dagster: AttemptsApi, attempt: DagsterAttempt) -> bool:
        if attempt.id not in self._workers and (pid := dagster.worker(attempt.id)):
            self._workers[attempt.id] = pid
        pid = self._workers.get(attempt.id)
        return pid is not None and self._lab.processes.worker(pid) is not None
