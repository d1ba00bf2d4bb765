"""Who looks on during a campaign: which attempts are under way, and what has had no live attempt for how long."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from botocore.exceptions import BotoCoreError, ClientError

from orchestrator.errors import DagsterDown, SandboxError
from orchestrator_sandbox.chaos.service_manager import Attempt, Books
from orchestrator_sandbox.chaos.site import Site

LOOK_SECONDS = 0.4
ORPHANS_SECONDS = 2.0


class Clock:
    """How long each thing has been an orphan; the longest time of each build is kept."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, str]] = {}
        self._longest: dict[str, float] = defaultdict(float)

    def see(self, orphans: Iterable[tuple[str, str]], now: float) -> None:
        """Note what is an orphan at this moment.

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


class Watch:
    """Looks at Dagster, EC2 and MLflow again and again, in a thread, until it is closed.

    Args:
        site: what it looks at.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._orphans = Clock()
        self._unattended = Clock()
        self._workers: dict[str, int] = {}
        self._under_way: dict[str, Attempt] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def attempt(self, partition: str) -> Attempt | None:
        """The attempt at this build that is under way; the newest of several."""
        return self._under_way.get(partition)

    def orphaned_seconds(self, partition: str) -> float:
        """The longest time that something of this build had no live attempt."""
        return self._orphans.longest(partition)

    def unattended_seconds(self, partition: str) -> float:
        """The longest time that no living process looked after something of this build, whatever Dagster believed."""
        return self._unattended.longest(partition)

    def _look_on(self) -> None:
        due = 0.0
        with self._site.books() as books:
            while not self._closing.wait(LOOK_SECONDS):
                try:
                    self._under_way = {attempt.partition: attempt for attempt in books.under_way()}
                    if time.monotonic() >= due:
                        self._look_for_orphans(books)
                        due = time.monotonic() + ORPHANS_SECONDS
                except (DagsterDown, SandboxError, BotoCoreError, ClientError):
                    continue  # it has just been killed: what was seen last still counts

    def _look_for_orphans(self, books: Books) -> None:
        things = {instance.id: instance.partition for instance in self._site.instances()}
        things |= self._site.open_mlflow_runs()
        # Only now: an attempt that ended meanwhile must not look as if it had left something.
        under_way = books.under_way()
        live = {attempt.partition for attempt in (*under_way, *books.retries_due())}
        attended = {attempt.partition for attempt in under_way if self._works(books, attempt)}
        now = time.monotonic()
        self._orphans.see(((thing, build) for thing, build in things.items() if build not in live), now)
        self._unattended.see(((thing, build) for thing, build in things.items() if build not in attended), now)

    def _works(self, books: Books, attempt: Attempt) -> bool:
        if attempt.id not in self._workers and (pid := books.worker(attempt.id)):
            self._workers[attempt.id] = pid
        pid = self._workers.get(attempt.id)
        return pid is not None and self._site.processes.worker(pid) is not None
