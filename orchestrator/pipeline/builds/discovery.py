"""Which builds are new: the pure logic of the sensor, from Jenkins' answers and a cursor to a new cursor.

Build numbers of a job only grow, and so do the builds' timestamps, by Jenkins' own clock. So a build is new
when its number is greater than any number looked at, or, after the job was deleted and re-created and counts
from 1 again, when its timestamp is later than any looked at. What cannot be settled at once stays in the
cursor: builds that still run, and stretches of history that were not read yet.

Jenkins loads a record from its disk for every build that it is asked about, and all of a job's for `allBuilds`. So a
light tick asks for the next number of each job, which costs no record, and reads on where it is not the known one.
Now and then (`Limits.light_ticks`) a thorough tick asks for the newest build as well: a job that was re-created, and
has come to the very number that it had, is told by its time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.pipeline.builds.branches import BranchChoice, branch_of, choose_branches
from orchestrator.pipeline.builds.cursor import VERSION, Cursor, FoundSuccess, JobCursor, UnreadRange
from orchestrator.pipeline.builds.reading import BuildReader, Limits, Source, age, is_same, last_numbers
from orchestrator.resources.jenkins import (
    LATEST_TIMESTAMP,
    Build,
    BuildSummary,
    JobKind,
    JobSummary,
)


@dataclass(frozen=True)
class TickResult:
    """What a tick found.

    Attributes:
        register: successful builds to be known as partitions, oldest first.
        launch: those of them to train.
        cursor: to be handed to the next tick.
        running: names of builds that are waited for.
        unread: whether stretches of history are left to the next tick.
        branches: which branches it trains, and why.
        left_out: new successes that are not launched: of another branch, or of a change request.
        unreadable: names of builds that were given up.
        faults: what could not be read in this tick, a sentence each.
    """

    register: tuple[Build, ...]
    launch: tuple[Build, ...]
    cursor: Cursor
    running: tuple[str, ...]
    unread: bool
    branches: BranchChoice
    left_out: tuple[Build, ...] = ()
    unreadable: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


_USUAL = Limits()


def discover(
    source: Source,
    cursor: Cursor | None,
    *,
    job: str,
    patterns: Sequence[str] = (),
    unstable: bool = False,
    limits: Limits = _USUAL,
    clock: Callable[[], float] = time.monotonic,
) -> TickResult:
    """Look for new builds once.

    The first tick registers the past and trains the newest success; later ones train every success. A
    branch that appears later is all new. Builds of branches that are not to be trained are registered only.
    What cannot be read of one build costs that build: it is asked for again a few times, then given up and named.
    Any other error leaves the caller with the old cursor.

    Args:
        source: Jenkins.
        cursor: what the last tick left; None for the first.
        job: full name of a job or multibranch project.
        patterns: TRAIN_BRANCHES.
        unstable: UNSTABLE counts as success.
        limits: how much to do at most.
        clock: seconds that only grow.

    Raises:
        JenkinsError: Jenkins did not answer, or not well.
    """
    first = cursor is None or cursor.job != job
    before = Cursor(version=VERSION, job=job, searching=True) if cursor is None or first else cursor
    thorough = (
        first
        or before.version < VERSION
        or before.light_ticks >= min(limits.light_ticks, max(limits.least_light_ticks, before.job_count))
    )
    many_run = sum(len(known.pending) for known in before.jobs.values()) > limits.few
    thorough = thorough or many_run
    began = clock()
    overview = source.overview(job, newest=limits.newest if first or many_run else int(thorough))
    answer_seconds = clock() - began
    if not thorough and any(before.is_vanished(summary.job) for summary in overview.jobs):
        thorough = True
        overview = source.overview(job, newest=limits.newest)
    summaries = overview.jobs
    latest = max((build.timestamp for summary in summaries for build in summary.newest), default=0)
    branches = choose_branches(overview, job=job, patterns=patterns, known=before.primary, head=source.default_branch)
    reading = BuildReader(source, branches, unstable, limits, clock, before.searching, began, answer_seconds)
    now: dict[str, JobCursor] = {}
    for summary in summaries:
        known = before.known(summary.job) or JobCursor()
        if before.version < VERSION:
            known = _with_past_unread(known)
        now[summary.job] = (
            _all_history(summary, awaits_success=branches.may_train(summary.job), latest=latest, few=limits.few)
            if first
            else _with_new_builds(known, summary)
        )
    backlog = [stretch for job_cursor in now.values() for stretch in job_cursor.unread]
    share = 0.5 if backlog else 1.0
    if backlog and answer_seconds > limits.seconds * share:  # one more request in this tick: new builds, then in turn
        share = 0.0 if any(stretch.launch for stretch in backlog) or before.light_ticks % 2 == 0 else share
    for summary in summaries:
        now[summary.job] = reading.poll(summary, now[summary.job], share=share)
    for summary in summaries:
        known = now[summary.job]
        now[summary.job] = reading.read(summary.job, known, new=True)
        pending = now[summary.job].pending
        if riddles := [number for number, time in pending.items() if not time and number not in known.pending]:
            polled = reading.poll_again(summary.job, now[summary.job], riddles)
            now[summary.job] = reading.read(summary.job, polled, new=True)
    for name, job_cursor in now.items():
        now[name] = reading.read(name, job_cursor, new=False)

    here = FoundSuccess.of(reading.newest_success) if reading.newest_success else None
    newest = max(filter(None, (before.newest_success, here)), key=age, default=None)
    awaits_success = any(unread.awaits_success for job_cursor in now.values() for unread in job_cursor.unread)
    searching = before.searching and awaits_success
    if newest and not searching:
        # Not done when Jenkins cannot tell of it just now.
        searching = not reading.launch_again(newest, is_shown=newest.job in now)
    exact = {name for name in now if branches.kind is JobKind.PLAIN or branch_of(name, job) in branches.primary}
    after = before.followed_by(now, latest=latest, exact=exact, most=limits.vanished)
    return TickResult(
        register=tuple(sorted(reading.registered.values(), key=age)),
        launch=tuple(sorted(reading.launched.values(), key=age)),
        cursor=after.model_copy(
            update={
                "light_ticks": 0 if thorough else before.light_ticks + 1,
                "searching": searching,
                "newest_success": newest if searching else None,
                "primary": branches.remembered,
            }
        ),
        running=tuple(f"{name} #{number}" for name in now for number in sorted(now[name].pending)),
        unread=any(job_cursor.unread for job_cursor in now.values()),
        branches=branches,
        left_out=tuple(sorted(reading.left_out.values(), key=age)),
        unreadable=tuple(f"{name} #{number}" for name in now for number in now[name].unreadable),
        faults=(*overview.faults, *reading.faults),
    )


def _all_history(summary: JobSummary, *, awaits_success: bool, latest: int, few: int) -> JobCursor:
    """What the first tick makes of a job: all of it is history, but for the builds that run.

    Args:
        summary: the top of its history.
        awaits_success: its newest success may be the one to train.
        latest: the latest timestamp of all jobs, where those of this one cannot be read.
        few: of the numbers that were given and that no build is seen of, so many may belong to one that just begins.
    """
    top = max((build.number for build in summary.newest), default=0)
    newest = max(top, summary.next_number - 1) if summary.next_number else top
    running = {build.number: build.timestamp for build in summary.newest if not build.finished and build.timestamp}
    return JobCursor(
        newest=newest,
        latest=max((build.timestamp for build in summary.newest), default=0) or (latest if summary.newest else 0),
        pending=running | dict.fromkeys(last_numbers(top + 1, newest, few), 0),
        unread=(UnreadRange(high=newest, awaits_success=awaits_success),) if top else (),
    )


def _with_past_unread(known: JobCursor) -> JobCursor:
    """Read the past once more: what an earlier version recorded of it is not signed."""
    new = [stretch for stretch in known.unread if stretch.launch]
    awaits_success = any(stretch.awaits_success for stretch in known.unread)
    past = [UnreadRange(high=known.newest, awaits_success=awaits_success)] if known.newest else []
    return known.model_copy(update={"unread": (*new, *past)})


def _with_new_builds(known: JobCursor, summary: JobSummary) -> JobCursor:
    """Take note of what is new at the top of a job."""
    # A next number below ours: the job was re-created, or Jenkins was restored from a backup.
    newest = min(known.newest, summary.next_number - 1) if summary.next_number else known.newest
    if not known.latest and newest == known.newest:
        # Nothing of its past was readable, which is no reason to take it for new.
        past = [build.timestamp for build in summary.newest if build.number <= newest]
        known = known.model_copy(update={"latest": max(past, default=0)})
    top = max((build.number for build in summary.newest), default=0)
    if summary.next_number:
        top = summary.next_number - 1
    later = [build for build in summary.newest if build.timestamp > known.latest and not _is_known(build, known)]
    if not top or (top == known.newest and not later) or (not summary.next_number and top <= newest and not later):
        return known.model_copy(update={"newest": newest})
    unread = tuple(
        stretch.model_copy(update={"skip": stretch.skip + max(len(later), top - newest)}) for stretch in known.unread
    )
    anew = newest < known.newest
    since = known.latest if known.latest or anew else LATEST_TIMESTAMP
    stretch = UnreadRange(high=top, low=newest + 1, since=since, launch=True)
    return JobCursor(
        newest=top,
        latest=max(known.latest, *(build.timestamp for build in summary.newest), 0),
        pending=known.pending,
        unread=(stretch, *unread),
        tries={} if anew else known.tries,
        unreadable=() if anew else known.unreadable,
    )


def _is_known(build: BuildSummary, known: JobCursor) -> bool:
    """Whether it is waited for, or was given up."""
    timestamp = known.pending.get(build.number)
    return build.number in known.unreadable or (timestamp is not None and is_same(build.timestamp, timestamp))
