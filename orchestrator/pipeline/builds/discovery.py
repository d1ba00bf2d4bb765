"""Which builds are new: the pure logic of the sensor, from Jenkins' answers and a cursor to a new cursor.

Build numbers of a job only grow, and so do the builds' timestamps, by Jenkins' own clock. So a build is new
when its number is greater than any number looked at, or, after the job was deleted and re-created and counts
from 1 again, when its timestamp is later than any looked at. What cannot be settled at once stays in the
cursor: builds that still run, and stretches of history that were not read yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from orchestrator.errors import JenkinsNotFound
from orchestrator.pipeline.builds.cursor import Cursor, Gap, Watched
from orchestrator.resources.jenkins.answers import Build, Head


class Source(Protocol):
    """What a tick asks of Jenkins; :class:`orchestrator.resources.jenkins.client.Jenkins` has it."""

    def heads(self, job: str, *, newest: int, per_branch: int) -> Sequence[Head]: ...

    def builds(self, job: str, *, start: int, stop: int) -> Sequence[Build]: ...

    def build(self, job: str, number: int) -> Build: ...


@dataclass(frozen=True)
class Limits:
    """How much one tick may do.

    Attributes:
        newest: builds in the one request that every tick makes.
        per_branch: the same, for each branch of a multibranch project.
        few: up to so many new builds are looked at one by one, more are read page by page.
        page: builds in a page of history, 2 or more.
        builds: no further request after so many builds were read ...
        seconds: ... or after this time; the rest is left to the next tick.
        vanished: branches to remember after Jenkins stopped showing them; the latest ones.
    """

    newest: int = 20
    per_branch: int = 2
    few: int = 3
    page: int = 50
    builds: int = 500
    seconds: float = 15.0
    vanished: int = 300


@dataclass(frozen=True)
class Settled:
    """What a tick found.

    Attributes:
        register: successful builds to be known as partitions, oldest first.
        launch: those of them to train.
        cursor: to be handed to the next tick.
        running: names of builds that are waited for.
        unread: whether stretches of history are left to the next tick.
    """

    register: tuple[Build, ...]
    launch: tuple[Build, ...]
    cursor: Cursor
    running: tuple[str, ...]
    unread: bool


def tick(
    source: Source,
    cursor: Cursor | None,
    *,
    job: str,
    unstable: bool = False,
    limits: Limits = Limits(),
    clock: Callable[[], float] = time.monotonic,
) -> Settled:
    """Look for new builds once.

    The first tick registers the past and trains the newest success; later ones train every success. A
    branch that appears later is all new. Any error leaves the caller with the old cursor.

    Args:
        source: Jenkins.
        cursor: what the last tick left; None for the first.
        job: full name of a job or multibranch project.
        unstable: UNSTABLE counts as success.
        limits: how much to do at most.
        clock: seconds that only grow.

    Raises:
        JenkinsError: Jenkins did not answer, or not well.
    """
    first = cursor is None or cursor.job != job
    before = Cursor(job=job, searching=True) if cursor is None or first else cursor
    work = _Work(source, unstable, limits, clock, searching=before.searching)
    shown = source.heads(job, newest=limits.newest, per_branch=limits.per_branch)
    now: dict[str, Watched] = {}
    for head in shown:
        now[head.job] = _past(head) if first else _look(head, before.jobs.get(head.job, Watched()), limits=limits)
    backlog = any(watched.gaps for watched in now.values())
    for head in shown:
        now[head.job] = work.poll(head, now[head.job], share=0.5 if backlog else 1.0)
    for name, watched in now.items():
        now[name] = work.read(name, watched)

    newest = max(filter(None, (before.first, work.first)), key=_age, default=None)
    searching = before.searching and any(gap.search for watched in now.values() for gap in watched.gaps)
    if newest and not searching:
        work.found(newest, launch=True)
    gone = [(name, watched) for name, watched in before.jobs.items() if name not in now]
    gone.sort(key=lambda item: item[1].latest, reverse=True)
    return Settled(
        register=tuple(sorted(work.registered.values(), key=_age)),
        launch=tuple(sorted(work.launched.values(), key=_age)),
        cursor=Cursor(
            job=job,
            jobs=now | dict(gone[: limits.vanished]),
            searching=searching,
            first=newest if searching else None,
        ),
        running=tuple(f"{name} #{number}" for name in now for number in sorted(now[name].pending)),
        unread=any(watched.gaps for watched in now.values()),
    )


def _age(build: Build) -> tuple[int, int]:
    return build.timestamp, build.number


def _past(head: Head) -> Watched:
    """What the first tick makes of a job: all of it is history, but for the builds that run."""
    if not head.newest:
        return Watched()
    return Watched(
        newest=head.newest[0].number,
        latest=max(build.timestamp for build in head.newest),
        pending={build.number: build.timestamp for build in head.newest if not build.finished},
        gaps=(Gap(high=head.newest[0].number, search=True),),
    )


def _look(head: Head, known: Watched, *, limits: Limits) -> Watched:
    """Take note of what is new at the top of a job."""
    # A next number below ours: the job was re-created, or Jenkins was restored from a backup.
    newest = min(known.newest, head.next_number - 1) if head.next_number else known.newest
    fresh = tuple(takewhile(lambda build: build.number > newest or build.timestamp > known.latest, head.newest))
    if not fresh:
        return known.model_copy(update={"newest": newest})
    top = fresh[0].number
    added = max(len(fresh), top - newest)
    gaps = tuple(gap.model_copy(update={"skip": gap.skip + added}) for gap in known.gaps)
    pending = dict(known.pending)
    if len(fresh) <= limits.few and (head.whole or len(fresh) < len(head.newest)):
        pending |= {build.number: build.timestamp for build in fresh}
    else:
        gaps = (Gap(high=top, low=newest + 1, since=known.latest, launch=True), *gaps)
    latest = max(known.latest, *(build.timestamp for build in head.newest))
    return Watched(newest=top, latest=latest, pending=pending, gaps=gaps)


@dataclass
class _Work:
    """One tick's reading, its budget and its finds."""

    source: Source
    unstable: bool
    limits: Limits
    clock: Callable[[], float]
    searching: bool
    registered: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    launched: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    first: Build | None = None

    def __post_init__(self) -> None:
        self._left = self.limits.builds
        self._since = self.clock()
        self._asked = False

    def found(self, build: Build, *, launch: bool) -> None:
        """Note a successful build."""
        key = (build.job, build.number, build.timestamp)
        self.registered[key] = build
        if launch:
            self.launched[key] = build

    def read(self, job: str, watched: Watched) -> Watched:
        """Read the gaps of a job, as far as the budget allows."""
        left: list[Gap] = []
        for start in watched.gaps:
            gap: Gap | None = start
            while gap and self._may_ask():
                gap, watched = self._read_page(job, gap, watched)
            if gap:
                left.append(gap)
        return watched.model_copy(update={"gaps": tuple(left)})

    def poll(self, head: Head, watched: Watched, *, share: float) -> Watched:
        """Look at the pending builds of a job again, with no more than a share of the budget."""
        shown = {build.number: build for build in head.newest}
        lowest = 0 if head.whole else head.newest[-1].number
        waiting: dict[int, int] = {}
        polled: dict[int, int] = {}
        for number, timestamp in watched.pending.items():
            seen = shown.get(number)
            if (seen is None and number > lowest) or (seen and seen.timestamp != timestamp):
                continue  # deleted, or its number was given to another build, which counts by itself
            if seen and seen.finished and not seen.succeeded(unstable=self.unstable):
                continue
            if (seen and not seen.finished) or not self._may_ask(share):
                waiting[number] = timestamp
            elif (build := self._build(head.job, number)) and build.timestamp == timestamp:
                if not build.finished:
                    polled[number] = timestamp  # behind the others: with a small budget all get their turn
                elif build.succeeded(unstable=self.unstable):
                    self.found(build, launch=True)
        return watched.model_copy(update={"pending": waiting | polled})

    def _read_page(self, job: str, gap: Gap, watched: Watched) -> tuple[Gap | None, Watched]:
        """Read one page; return what remains of the gap.

        Pages overlap by one build: unless the page begins above the gap, builds were deleted meanwhile and
        some of the gap moved to an earlier page.
        """
        size = self.limits.page
        page = self.source.builds(job, start=gap.skip, stop=gap.skip + size)
        self._left -= max(1, len(page))
        if gap.skip and not (page and page[0].number > gap.high):
            back = max(size - 1, 2 * gap.back)
            return gap.model_copy(update={"skip": max(0, gap.skip - back), "back": back}), watched
        pending, search = dict(watched.pending), gap.search
        inside = [build for build in page if build.number <= gap.high]
        own = list(takewhile(lambda build: build.number >= gap.low or build.timestamp > gap.since, inside))
        for build in own:
            if pending.get(build.number) == build.timestamp:
                continue
            if not build.finished:
                pending[build.number] = build.timestamp
            elif build.succeeded(unstable=self.unstable):
                self.found(build, launch=gap.launch)
                if search and self.searching:
                    self.first = max(filter(None, (self.first, build)), key=_age)
                search = False
        # Not ``latest``: were the job re-created since this tick began, the next one would miss its new builds.
        watched = watched.model_copy(update={"pending": pending})
        if len(own) < len(inside) or len(page) < size:
            return None, watched
        rest = {"high": min(gap.high, page[-1].number - 1), "skip": gap.skip + size - 1, "back": 0}
        return gap.model_copy(update={**rest, "search": search}), watched

    def _build(self, job: str, number: int) -> Build | None:
        self._left -= 1
        try:
            return self.source.build(job, number)
        except JenkinsNotFound:
            # Rotated away, if the job itself still answers; it raises when the token was revoked just now.
            self.source.heads(job, newest=1, per_branch=1)
            return None

    def _may_ask(self, share: float = 1.0) -> bool:
        """Whether the budget allows one more request; the first is always allowed, so that work goes on."""
        builds_left = self._left > self.limits.builds * (1 - share)
        allowed = not self._asked or (builds_left and self.clock() < self._since + self.limits.seconds * share)
        self._asked = True
        return allowed
