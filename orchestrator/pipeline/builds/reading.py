"""What a tick reads of Jenkins, within its budget: pages of history, and builds that are waited for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from orchestrator.errors import JenkinsError, JenkinsNotFound, JenkinsRefused, JenkinsUnavailable
from orchestrator.pipeline.builds.branches import BranchChoice
from orchestrator.pipeline.builds.cursor import FoundSuccess, JobCursor, UnreadRange
from orchestrator.resources import retry
from orchestrator.resources.jenkins import (
    LARGEST_NUMBER,
    Build,
    BuildPage,
    JobOverview,
    JobSummary,
    UnreadableBuild,
)


class Source(Protocol):
    """What a tick asks of Jenkins; `orchestrator.resources.jenkins.Jenkins` has it."""

    def overview(self, job: str, *, newest: int) -> JobOverview: ...

    def builds(self, job: str, *, start: int, stop: int) -> BuildPage: ...

    def build(self, job: str, number: int) -> Build: ...

    def default_branch(self, remote: str) -> str | None: ...


@dataclass(frozen=True)
class Limits:
    """How much one tick may do.

    Attributes:
        newest: builds of a plain job in the request of the first tick, and while many run.
        few: up to so many builds that run are asked for one by one; with more of them, the tick is a thorough one.
        light_ticks: in a row, as many as there are branches, because a thorough one costs Jenkins a record of each; at
            most so many ...
        least_light_ticks: ... and at least so many, if `light_ticks` allows.
        page: builds in a page of history, 2 or more.
        builds: no further request after so many builds were read ...
        seconds: ... or after this time; the rest is left to the next tick.
        tick_seconds: no request either that would not be answered in this time, were the answer as slow as the first.
        vanished: branches to remember after Jenkins stopped showing them; the latest ones, and all that vanished last.
        tries: how often a build is asked for that cannot be read.
        unreadable: builds of a job that were given up, to be named; the latest ones.
    """

    newest: int = 20
    few: int = 3
    light_ticks: int = 40
    least_light_ticks: int = 3
    page: int = 50
    builds: int = 500
    seconds: float = 15.0
    tick_seconds: float = retry.JENKINS_TICK_SECONDS
    vanished: int = 300
    tries: int = 8
    unreadable: int = 30


def age(build: Build | FoundSuccess) -> tuple[int, int]:
    """Sorts builds of any job from old to new."""
    return build.timestamp, build.number


def is_same(timestamp: int, other: int) -> bool:
    """Whether two builds of one number are one, as far as their timestamps are known."""
    return timestamp == other or not timestamp or not other


def last_numbers(low: int, high: int, few: int) -> range:
    """The last few numbers from `low` to `high`, both included."""
    return range(max(low, high - few + 1), high + 1)


def _with_doubt(known: JobCursor) -> JobCursor:
    """A build that was waited for is gone, or another: look whether the whole job is another one."""
    if not known.latest:
        return known  # no time tells what is new
    stretch = UnreadRange(high=known.newest, low=known.newest + 1, since=known.latest, launch=True)
    return known if stretch in known.unread else known.model_copy(update={"unread": (stretch, *known.unread)})


class _Gone:
    """In place of a build that Jenkins has no more."""


@dataclass
class BuildReader:
    """Reads what one tick reads: its budget and its finds.

    Attributes:
        began: when the tick began, by the clock.
        answer_seconds: how long the first answer took.
        newest_success: of what is searched for it.
        left_out: what would be launched, were it of a branch that is trained.
        faults: what could not be read, a sentence each.
    """

    source: Source
    branches: BranchChoice
    unstable: bool
    limits: Limits
    clock: Callable[[], float]
    searching: bool
    began: float
    answer_seconds: float
    registered: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    launched: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    left_out: dict[tuple[str, int, int], Build] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    newest_success: Build | None = None

    def __post_init__(self) -> None:
        self._builds_left = self.limits.builds
        self._started = self.clock()
        self._asked = False

    def note_success(self, build: Build, *, launch: bool) -> None:
        """Register a successful build; perhaps launch it, too, if it is of a branch that is trained."""
        key = (build.job, build.number, build.timestamp)
        self.registered[key] = build
        if launch:
            (self.launched if self.branches.trains(build) else self.left_out)[key] = build

    def launch_again(self, found: FoundSuccess, *, is_shown: bool) -> bool:
        """Launch a success that was found at this tick or at an earlier one; false: Jenkins cannot tell of it now.

        Args:
            found: where it is.
            is_shown: Jenkins shows its job.
        """
        build: Build | UnreadableBuild | _Gone | None = self.registered.get((found.job, found.number, found.timestamp))
        if build is None and is_shown:
            if not self._has_time():
                return False
            build = self._build(found.job, found.number)
        if isinstance(build, UnreadableBuild):
            return False
        if isinstance(build, Build) and build.timestamp == found.timestamp and build.succeeded(unstable=self.unstable):
            self.note_success(build, launch=True)
        else:
            self.faults.append(f"{found.job} #{found.number}, the newest success of the past, was deleted meanwhile")
        return True

    def read(self, job: str, known: JobCursor, *, new: bool) -> JobCursor:
        """Read the unread history of a job, as far as the budget allows.

        Args:
            job: its full name.
            known: with what is unread.
            new: what is to be launched; else the past.
        """
        remaining: list[UnreadRange] = []
        for start in known.unread:
            stretch: UnreadRange | None = start
            while stretch and stretch.launch is new and self._may_ask():
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
        lowest = 0 if summary.whole else min(visible, default=LARGEST_NUMBER)
        in_doubt = False
        latest = known.latest
        waiting: dict[int, int] = {}
        polled: dict[int, int] = {}
        tries: dict[int, int] = {}
        unreadable = list(known.unreadable)
        for number, timestamp in known.pending.items():
            seen = visible.get(number)
            if (seen is None and number > lowest) or (seen and not is_same(seen.timestamp, timestamp)):
                in_doubt = True
                continue  # deleted, or its number was given to another build, which counts by itself
            if seen and seen.finished and not seen.succeeded(unstable=self.unstable):
                continue
            running = seen and not seen.finished and not isinstance(seen, UnreadableBuild)
            build = None if running or not self._may_ask(share) else self._build(summary.job, number)
            if build is None:
                waiting[number] = timestamp
                tries[number] = known.tries.get(number, 0)
            elif isinstance(build, UnreadableBuild):
                tries[number] = known.tries.get(number, 0) + 1
                polled[number] = timestamp
                if tries[number] == 1:
                    self.faults.append(f"{summary.job} #{number}: {build.fault}")
                elif tries[number] >= self.limits.tries:
                    self.faults.append(f"{summary.job} #{number}, given up after {tries[number]} tries: {build.fault}")
                    unreadable.append(number)
                    del tries[number], polled[number]
            elif isinstance(build, Build) and is_same(build.timestamp, timestamp):
                if not timestamp:
                    # Of a job that was re-created there may be others like it, down to the latest one known so far.
                    in_doubt, latest = True, max(latest, build.timestamp)
                if not build.finished:
                    polled[number] = build.timestamp  # behind the others: with a small budget all get their turn
                elif build.succeeded(unstable=self.unstable):
                    self.note_success(build, launch=True)
            elif not timestamp and not known.tries.get(number):
                polled[number], tries[number] = 0, 1  # Jenkins gives the number a moment before it shows the build
            else:
                in_doubt = True
        update = {
            "pending": waiting | polled,
            "tries": {number: count for number, count in tries.items() if count},
            "unreadable": self._latest(unreadable),
        }
        after = known.model_copy(update=update)
        return (_with_doubt(after) if in_doubt else after).model_copy(update={"latest": latest})

    def poll_again(self, job: str, known: JobCursor, numbers: Collection[int]) -> JobCursor:
        """Look at some pending builds of a job that were found just now, and could not be read in a list."""
        found = known.model_copy(update={"pending": {number: known.pending[number] for number in numbers}})
        found = self.poll(JobSummary(job, None, (), whole=False), found, share=1.0)
        others = {number: time for number, time in known.pending.items() if number not in numbers}
        return found.model_copy(
            update={
                "pending": others | dict(found.pending),
                "tries": {number: tries for number, tries in known.tries.items() if number in others}
                | dict(found.tries),
            }
        )

    def _latest(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(set(numbers))[-self.limits.unreadable :])

    def _read_page(self, job: str, stretch: UnreadRange, known: JobCursor) -> tuple[UnreadRange | None, JobCursor]:
        """Read one page; return what remains of the stretch.

        Pages overlap by one build: unless the page begins above the stretch, builds were deleted meanwhile and
        some of the stretch moved to an earlier page.
        """
        size = self.limits.page
        if not stretch.skip:  # with the build below, which tells that this is all
            size = min(size, max(2, stretch.high - stretch.low + 2))
        answer = self.source.builds(job, start=stretch.skip, stop=stretch.skip + size)
        page = answer.builds
        self.faults += answer.faults
        self._builds_left -= max(1, len(page))
        if stretch.skip and not (page and page[0].number > stretch.high):
            correction = max(size - 1, 2 * stretch.correction)
            skip = max(0, stretch.skip - correction)
            return stretch.model_copy(update={"skip": skip, "correction": correction}), known
        pending, awaits_success, unreadable = dict(known.pending), stretch.awaits_success, list(known.unreadable)
        below = [build for build in page if build.number <= stretch.high]
        own = list(takewhile(lambda build: build.number >= stretch.low or build.timestamp > stretch.since, below))
        for build in own:
            if build.number in pending and is_same(pending[build.number], build.timestamp):
                continue
            if isinstance(build, UnreadableBuild) and not stretch.launch:
                # Of the past: it is named, and not waited for.
                self.faults.append(f"{job} #{build.number}, of the past, given up: {build.fault}")
                unreadable.append(build.number)
            elif not isinstance(build, Build) or not build.finished:
                pending[build.number] = build.timestamp
            elif build.succeeded(unstable=self.unstable):
                self.note_success(build, launch=stretch.launch)
                if self.branches.trains(build):
                    if awaits_success and self.searching:
                        self.newest_success = max(filter(None, (self.newest_success, build)), key=age)
                    awaits_success = False
        latest = known.latest
        if stretch.launch:
            # Not of the past: were the job re-created since this tick began, the next one would miss its new builds.
            latest = max(latest, *(build.timestamp for build in own), 0)
            if not stretch.skip:
                unseen = last_numbers(
                    max(stretch.low, page[0].number + 1 if page else 1), stretch.high, self.limits.few
                )
                pending = dict.fromkeys(unseen, 0) | pending
        known = known.model_copy(update={"latest": latest, "pending": pending, "unreadable": self._latest(unreadable)})
        if len(own) < len(below) or not answer.whole:
            return None, known
        if not page:  # nothing in it has a number: go on below it
            return stretch.model_copy(update={"skip": stretch.skip + size, "correction": 0}), known
        rest = {
            "high": min(stretch.high, page[-1].number - 1),
            "skip": stretch.skip + size - 1,
            "correction": 0,
            "awaits_success": awaits_success,
        }
        return stretch.model_copy(update=rest), known

    def _build(self, job: str, number: int) -> Build | UnreadableBuild | _Gone:
        self._builds_left -= 1
        try:
            return self.source.build(job, number)
        except JenkinsRefused:
            raise
        except JenkinsError as error:
            # Its own fault, or rotated away, if the job itself still answers; it raises when Jenkins is away, or when
            # the token was revoked just now.
            if not self._has_time():
                return UnreadableBuild(number, 0, None, str(error))
            self.source.overview(job, newest=0)
            return _Gone() if isinstance(error, JenkinsNotFound) else UnreadableBuild(number, 0, None, str(error))

    def _may_ask(self, share: float = 1.0) -> bool:
        """Whether the budget allows one more request; the first is always allowed, so that work goes on."""
        if not share or not self._has_time():
            return False
        builds_left = self._builds_left > self.limits.builds * (1 - share)
        allowed = not self._asked or (builds_left and self.clock() < self._started + self.limits.seconds * share)
        self._asked = True
        return allowed

    def _has_time(self) -> bool:
        """Whether one more answer, as slow as the first, comes in time.

        Raises:
            JenkinsUnavailable: the first was so slow that there is never time for another.
        """
        if self.answer_seconds > self.limits.tick_seconds / 2:
            raise JenkinsUnavailable(
                f"Jenkins took {self.answer_seconds:.0f} s to answer: a tick of the sensor needs two answers within "
                f"{self.limits.tick_seconds:.0f} s; see how Jenkins is doing"
            )
        return self.clock() + self.answer_seconds <= self.began + self.limits.tick_seconds
