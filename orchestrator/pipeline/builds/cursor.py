"""What one sensor tick leaves to the next: numbers looked at, builds that run, history not read yet."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from orchestrator.resources.jenkins.answers import Build


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gap(_Stored):
    """A stretch of a job's history that is still to be read, from new to old.

    Attributes:
        high: the greatest number in it.
        low: builds below this number are in it only when started after ``since``.
        since: milliseconds since 1970, by Jenkins' clock.
        skip: how many builds of the job are newer than ``high``, as far as known; at most too many.
        back: by how much ``skip`` was last taken back, for it was too many.
        launch: train what is found; else it is registered for backfill only.
        search: the newest success in it was not come upon yet; counts while the cursor is ``searching``.
    """

    high: int
    low: int = 1
    since: int = 0
    skip: int = 0
    back: int = 0
    launch: bool = False
    search: bool = False


class Watched(_Stored):
    """What is known of one job.

    Attributes:
        newest: the greatest number looked at.
        latest: the latest timestamp at the top of its history, at any tick.
        pending: number → timestamp of the builds that ran when they were looked at.
        gaps: what is still to be read, newest first.
    """

    newest: int = 0
    latest: int = 0
    pending: Mapping[int, int] = {}
    gaps: tuple[Gap, ...] = ()


class Cursor(_Stored):
    """Everything that a tick leaves to the next one.

    Attributes:
        job: JENKINS_JOB_NAME; with another one, all begins anew.
        jobs: that job, or each branch by its full name.
        searching: the newest success, which the first tick is to train, is still looked for.
        first: what that search found so far.
    """

    job: str
    jobs: Mapping[str, Watched] = {}
    searching: bool = False
    first: Build | None = None

    def dump(self) -> str:
        """As compact JSON; ``Cursor.model_validate_json`` reads it."""
        return self.model_dump_json(exclude_defaults=True)
