"""What one sensor tick leaves to the next: numbers looked at, builds that run, history not read yet.

It is stored as JSON in the users' Dagster: each field is written, and also read, by the name that it had first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from orchestrator.resources.jenkins import Build


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
        latest: the latest timestamp at the top of its history, at any tick.
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


class Cursor(_Stored):
    """Everything that a tick leaves to the next one.

    Attributes:
        job: JENKINS_JOB_NAME; with another one, all begins anew.
        jobs: that job, or each branch by its full name.
        searching: the newest success, which the first tick is to train, is still looked for.
        newest_success: what that search found so far.
        primary: the primary branches, as Jenkins or the remote told last.
    """

    job: str
    jobs: Mapping[str, JobCursor] = {}
    searching: bool = False
    newest_success: Build | None = _stored_as("first", "newest_success", None)
    primary: tuple[str, ...] = ()

    def dump(self) -> str:
        """As compact JSON; `Cursor.model_validate_json` reads it."""
        return self.model_dump_json(exclude_defaults=True, by_alias=True)
