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
from orchestrator.pipeline.builds.cursor import Cursor, JobCursor, UnreadRange
from orchestrator.resources.jenkins import Build, JobSummary


class Source(Protocol):
    """What a tick asks of Jenkins; `orchestrator.resources.jenkins.Jenkins` has it."""

    def job_summaries(self, job: str, *, newest: int, per_branch: int) -> Sequence[JobSummary]: ...

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
class TickResult:
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


def discover(
    source: Source,
    cursor: Cursor | None,
    *,
    job: str,
    unstable: bool = False,
    limits: Limits = Limits(),
    clock: Callable[[], float] = time.monotonic,
) -> TickResult:
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
    reading = _Reading(source, unstable, limits, clock, searching=before.searching)
    summaries = source.job_summaries(job, newest=limits.newest, per_branch=limits.per_branch)
    now: dict[str, JobCursor] = {}
    for summary in summaries:
        known = before.jobs.get(summary.job, JobCursor())
        now[summary.job] = _all_history(summary) if first else _with_new_builds(known, summary, limits=limits)
    backlog = any(job_cursor.unread for job_cursor in now.values())
    for summary in summaries:
        now[summary.job] = reading.poll(summary, now[summary.job], share=0.5 if backlog else 1.0)
    for name, job_cursor in now.items():
        now[name] = reading.read(name, job_cursor)

    newest = max(filter(None, (before.newest_success, reading.newest_success)), key=_age, default=None)
    awaits_success = any(unread.awaits_success for job_cursor in now.values() for unread in job_cursor.unread)
    searching = before.searching and awaits_success
    if newest and not searching:
        reading.note_success(newest, launch=True)
    vanished = [(name, job_cursor) for name, job_cursor in before.jobs.items() if name not in now]
    vanished.sort(key=lambda item: item[1].latest, reverse=True)
    return TickResult(
        register=tuple(sorted(reading.registered.values(), key=_age)),
        launch=tuple(sorted(reading.launched.values(), key=_age)),
        cursor=Cursor(
            job=job,
            jobs=now | dict(vanished[: limits.vanished]),
            searching=searching,
            newest_success=newest if searching else None,
        ),
        running=tuple(f"{name} #{number}" for name in now for number in sorted(now[name].pending)),
        unread=any(job_cursor.unread for job_cursor in now.values()),
    )


def _age(build: Build) -> tuple[int, int]:
    return build.timestamp, build.number


def _all_history(summary: JobSummary) -> JobCursor:
    """What the first tick makes of a job: all of it is history, but for the builds that run."""
    if not summary.newest:
        return JobCursor()
    top = summary.newest[0].number
    return JobCursor(
        newest=top,
        latest=max(build.timestamp for build in summary.newest),
        pending={build.number: build.timestamp for build in summary.newest if not build.finished},
        unread=(UnreadRange(high=top, awaits_success=True),),
    )


def _with_new_builds(known: JobCursor, summary: JobSummary, *, limits: Limits) -> JobCursor:
    """Take note of what is new at the top of a job."""
    # A next number below ours: the job was re-created, or Jenkins was restored from a backup.
    newest = min(known.newest, summary.next_number - 1) if summary.next_number else known.newest
    fresh = tuple(takewhile(lambda build: build.number > newest or build.timestamp > known.latest, summary.newest))
    if not fresh:
        return known.model_copy(update={"newest": newest})
    top = fresh[0].number
    added = max(len(fresh), top - newest)
    unread = tuple(stretch.model_copy(update={"skip": stretch.skip + added}) for stretch in known.unread)
    pending = dict(known.pending)
    if len(fresh) <= limits.few and (summary.whole or len(fresh) < len(summary.newest)):
        pending |= {build.number: build.timestamp for build in fresh}
    else:
        unread = (UnreadRange(high=top, low=newest + 1, since=known.latest, launch=True), *unread)
    latest = max(known.latest, *(build.timestamp for build in summary.newest))
    return JobCursor(newest=top, latest=latest, pending=pending, unread=unread)


@dataclass
class _Reading:
    """One tick's reading, its budget and its finds.

    Attributes:
        newest_success: of what is searched for it.
    """

    source: Source
    unstable: bool
    limits: Limits
    clock: Callable[[], float]
    searching: bool
    registered: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    launched: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    newest_success: Build | None = None

    def __post_init__(self) -> None:
        self._builds_left = self.limits.builds
        self._started = self.clock()
        self._asked = False

    def note_success(self, build: Build, *, launch: bool) -> None:
        """Register a successful build; perhaps launch it, too."""
        key = (build.job, build.number, build.timestamp)
        self.registered[key] = build
        if launch:
            self.launched[key] = build

    def read(self, job: str, known: JobCursor) -> JobCursor:
        """Read the unread history of a job, as far as the budget allows."""
        remaining: list[UnreadRange] = []
        for start in known.unread:
            stretch: UnreadRange | None = start
            while stretch and self._may_ask():
                stretch, known = self._read_page(job, stretch, known)
            if stretch:
                remaining.append(stretch)
        return known.model_copy(update={"unread": tuple(remaining)})

    def poll(self, summary: JobSummary, known: JobCursor, *, share: float) -> JobCursor:
        """Look at the pending builds of a job again.

        Args:
            summary: the top of its history, which saves asking for those in it.
            known: with the pending builds.
            share: of the budget, at most; from 0 to 1.
        """
        visible = {build.number: build for build in summary.newest}
        lowest = 0 if summary.whole else summary.newest[-1].number
        waiting: dict[int, int] = {}
        polled: dict[int, int] = {}
        for number, timestamp in known.pending.items():
            seen = visible.get(number)
            if (seen is None and number > lowest) or (seen and seen.timestamp != timestamp):
                continue  # deleted, or its number was given to another build, which counts by itself
            if seen and seen.finished and not seen.succeeded(unstable=self.unstable):
                continue
            if (seen and not seen.finished) or not self._may_ask(share):
                waiting[number] = timestamp
            elif (build := self._build(summary.job, number)) and build.timestamp == timestamp:
                if not build.finished:
                    polled[number] = timestamp  # behind the others: with a small budget all get their turn
                elif build.succeeded(unstable=self.unstable):
                    self.note_success(build, launch=True)
        return known.model_copy(update={"pending": waiting | polled})

    def _read_page(self, job: str, stretch: UnreadRange, known: JobCursor) -> tuple[UnreadRange | None, JobCursor]:
        """Read one page; return what remains of the stretch.

        Pages overlap by one build: unless the page begins above the stretch, builds were deleted meanwhile and
        some of the stretch moved to an earlier page.
        """
        size = self.limits.page
        page = self.source.builds(job, start=stretch.skip, stop=stretch.skip + size)
        self._builds_left -= max(1, len(page))
        if stretch.skip and not (page and page[0].number > stretch.high):
            correction = max(size - 1, 2 * stretch.correction)
            skip = max(0, stretch.skip - correction)
            return stretch.model_copy(update={"skip": skip, "correction": correction}), known
        pending, awaits_success = dict(known.pending), stretch.awaits_success
        below = [build for build in page if build.number <= stretch.high]
        own = list(takewhile(lambda build: build.number >= stretch.low or build.timestamp > stretch.since, below))
        for build in own:
            if pending.get(build.number) == build.timestamp:
                continue
            if not build.finished:
                pending[build.number] = build.timestamp
            elif build.succeeded(unstable=self.unstable):
                self.note_success(build, launch=stretch.launch)
                if awaits_success and self.searching:
                    self.newest_success = max(filter(None, (self.newest_success, build)), key=_age)
                awaits_success = False
        # Not `latest`: were the job re-created since this tick began, the next one would miss its new builds.
        known = known.model_copy(update={"pending": pending})
        if len(own) < len(below) or len(page) < size:
            return None, known
        rest = {
            "high": min(stretch.high, page[-1].number - 1),
            "skip": stretch.skip + size - 1,
            "correction": 0,
            "awaits_success": awaits_success,
        }
        return stretch.model_copy(update=rest), known

    def _build(self, job: str, number: int) -> Build | None:
        self._builds_left -= 1
        try:
            return self.source.build(job, number)
        except JenkinsNotFound:
            # Rotated away, if the job itself still answers; it raises when the token was revoked just now.
            self.source.job_summaries(job, newest=1, per_branch=1)
            return None

    def _may_ask(self, share: float = 1.0) -> bool:
        """Whether the budget allows one more request; the first is always allowed, so that work goes on."""
        builds_left = self._builds_left > self.limits.builds * (1 - share)
        allowed = not self._asked or (builds_left and self.clock() < self._started + self.limits.seconds * share)
        self._asked = True
        return allowed
