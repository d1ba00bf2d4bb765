"""What one sensor tick leaves to the next: numbers looked at, builds that run, history not read yet.

It is stored as JSON in the users' Dagster: each field is written, and also read, by the name that it had first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from orchestrator.pipeline.builds.settled import SettledJobs, VanishedJob, VanishedJobs, job_digest
from orchestrator.resources.jenkins import LARGEST_NUMBER, Build

VERSION = 2
"""Of version 1, each job was stored by name, and the records of its builds are not signed."""


def _stored_as(stored: str, name: str, default: Any) -> Any:
    return Field(default, validation_alias=AliasChoices(name, stored), serialization_alias=stored)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnreadRange(_Stored):
    """A stretch of a job's history that is still to be read, from new to old.

    Attributes:
        high: the greatest number in it.
        low: builds below this number are in it only when started after `since`.
        since: milliseconds since 1970, by Jenkins' clock.
        skip: how many builds of the job are newer than `high`, as far as known; at most too many.
        correction: how far the last correction moved `skip` back, because it was too many.
        launch: train what is found; else it is registered for backfill only.
        awaits_success: its newest success was not found yet; counts while the cursor is `searching`.
    """

    high: int
    low: int = 1
    since: int = 0
    skip: int = 0
    correction: int = _stored_as("back", "correction", 0)
    launch: bool = False
    awaits_success: bool = _stored_as("search", "awaits_success", False)


class JobCursor(_Stored):
    """What is known of one job.

    Attributes:
        newest: the greatest number looked at.
        latest: the latest timestamp at the top of its history, at any tick that looked at it.
        pending: number → timestamp of the builds that ran, or were not readable, when they were looked at; a
            timestamp of 0 is not known.
        unread: what is still to be read, newest first.
        tries: number → how often a pending build could not be read, though Jenkins answered.
        unreadable: numbers of the builds that were given up; the latest ones.
    """

    newest: int = 0
    latest: int = 0
    pending: Mapping[int, int] = {}
    unread: tuple[UnreadRange, ...] = _stored_as("gaps", "unread", ())
    tries: Mapping[int, int] = {}
    unreadable: tuple[int, ...] = ()

    def code(self) -> int | None:
        """As one number, if nothing but these has to be known: the newest build, and whether the past was read."""
        if self.pending or self.tries or self.unreadable or not 0 <= self.newest <= LARGEST_NUMBER:
            return None
        for kind, unread in enumerate(_unread_pasts(self.newest)):
            if self.unread == unread:
                return self.newest * 4 + kind
        return None

    @classmethod
    def of_code(cls, code: int, *, latest: int) -> Self:
        """What `code` made a number of.

        Args:
            code: that number.
            latest: no build of the job that was looked at is later, in milliseconds since 1970.
        """
        newest, kind = divmod(code, 4)
        return cls(newest=newest, latest=latest, unread=_unread_pasts(newest)[min(kind, 2)])


def _unread_pasts(newest: int) -> tuple[tuple[UnreadRange, ...], ...]:
    """How much of a job's past can be unread, in a few words: nothing; all; all, and its newest success is awaited."""
    return (), (UnreadRange(high=newest),), (UnreadRange(high=newest, awaits_success=True),)


class FoundSuccess(BaseModel):
    """Where a success is found again; not what it is, because a cursor can be edited in Dagster's UI.

    Attributes:
        job: full name of its job.
        number: Jenkins' build number.
        timestamp: when it was started, in milliseconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    number: int
    timestamp: int

    @classmethod
    def of(cls, build: Build) -> Self:
        """Where this build is."""
        return cls(job=build.job, number=build.number, timestamp=build.timestamp)


class Cursor(_Stored):
    """Everything that a tick leaves to the next one.

    Attributes:
        version: how it is stored.
        job: JENKINS_JOB_NAME; with another one, all begins anew.
        jobs: that job, or the branches of which more than a number has to be known, by their full names.
        settled: the other branches.
        vanished: those of them that Jenkins shows no more; the latest ones.
        latest: the latest timestamp at the top of any job's history, at any thorough tick.
        light_ticks: how many there were since the last thorough one.
        searching: the newest success, which the first tick is to train, is still looked for.
        newest_success: what that search found so far.
        primary: the primary branches, as Jenkins or the remote told last.
    """

    version: int = 1
    job: str
    jobs: Mapping[str, JobCursor] = {}
    settled: SettledJobs = {}
    vanished: VanishedJobs = ()
    latest: int = 0
    light_ticks: int = 0
    searching: bool = False
    newest_success: FoundSuccess | None = _stored_as("first", "newest_success", None)
    primary: tuple[str, ...] = ()

    @property
    def job_count(self) -> int:
        """How many jobs Jenkins showed, or more."""
        return len(self.jobs) + len(self.settled)

    def known(self, job: str) -> JobCursor | None:
        """What is known of a job; None: it is new."""
        if job in self.jobs:
            return self.jobs[job]
        digest = job_digest(job)
        if digest in self.settled:
            return JobCursor.of_code(self.settled[digest], latest=self.latest)
        found = (vanished for vanished in self.vanished if vanished.digest == digest)
        return next((JobCursor.of_code(vanished.code, latest=vanished.latest) for vanished in found), None)

    def is_vanished(self, job: str) -> bool:
        """Whether it is remembered as one that Jenkins shows no more."""
        digest = job_digest(job)
        return (
            bool(self.vanished)
            and job not in self.jobs
            and digest not in self.settled
            and any(vanished.digest == digest for vanished in self.vanished)
        )

    def followed_by(self, jobs: Mapping[str, JobCursor], *, latest: int, exact: Collection[str], most: int) -> Cursor:
        """What is known after a tick, in as few bytes as it takes.

        Args:
            jobs: all that Jenkins showed.
            latest: the latest timestamp among them.
            exact: those to keep by name, whatever is known of them.
            most: how many vanished jobs to remember; those that vanished last are remembered however many they are,
                because Jenkins may have shown an empty list.
        """
        digests = {job: job_digest(job) for job in jobs}
        shared = Counter(digests.values())
        latest = max(self.latest, latest)
        # One that was looked at since is later than what a packed job is remembered by.
        codes = {job: cursor.code() for job, cursor in jobs.items() if job not in exact and cursor.latest <= latest}
        settled = {digests[job]: code for job, code in codes.items() if code is not None and shared[digests[job]] == 1}
        named = {job: cursor for job, cursor in jobs.items() if digests[job] not in settled}

        gone = {job: cursor for job, cursor in self.jobs.items() if job not in jobs}
        packed = {job_digest(job): code for job, cursor in gone.items() if (code := cursor.code()) is not None}
        busy = [(job, cursor) for job, cursor in gone.items() if cursor.code() is None]
        busy.sort(key=lambda item: item[1].latest, reverse=True)
        packed |= {digest: code for digest, code in self.settled.items() if digest not in shared}
        # One time for all of them, so that the order stays; none of them can have been looked at later.
        last_seen = max(self.latest, *(cursor.latest for cursor in gone.values()), 0)
        now_vanished = tuple(VanishedJob(digest, code, last_seen) for digest, code in packed.items())
        vanished = (*now_vanished, *(job for job in self.vanished if job.digest not in shared))
        last = sum(job.latest == vanished[0].latest for job in vanished) if vanished else 0
        return Cursor(
            version=VERSION,
            job=self.job,
            jobs=named | dict(busy[:most]),
            settled=settled,
            vanished=vanished[: max(last, most)],
            latest=latest,
        )

    def dump(self) -> str:
        """As compact JSON; `Cursor.model_validate_json` reads it."""
        return self.model_dump_json(exclude_defaults=True, by_alias=True)
