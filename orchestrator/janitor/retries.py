"""Whether Dagster was to retry a failed run and did not. Pure: the facts are read elsewhere.

Where else a retry is decided: dagster.yaml (`run_retries`: how often, and not after a failed step) and the retry of
each failed call (`orchestrator/resources/retry.py`). The janitor adds none of its own: it only has Dagster decide again
on a failure whose retry Dagster has missed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from orchestrator import names
from orchestrator.dagster_instance import RunRetries

DECIDED = timedelta(minutes=1)
"""How long Dagster may take to write on a failed run whether it will be retried."""

LAUNCHED = timedelta(minutes=10)
"""How long Dagster may take to launch a retry that it has announced."""

MOST_ASKED = 10
"""How often Dagster is asked once more: ten minutes of code servers that die at the wrong moment."""


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A failed run that surely trains one of our pipelines.

    Attributes:
        id: its own.
        root: the run that it tries again, directly or not; its own ID when it tries none.
        partition: key of its partition, as Dagster has it; empty when it has none.
        pipelines: whose models it trains; None: unknown, so any.
        created_at: when Dagster wrote it down.
        ended_at: when it failed.
        tags: all that it has.
    """

    id: str
    root: str
    partition: str
    pipelines: frozenset[str] | None
    created_at: datetime
    ended_at: datetime
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How often Dagster has been asked to retry it, or one that it retries, once more."""
        try:
            return int(self.tags.get(names.RunTag.RETRIES_ASKED, "0"))
        except ValueError:  # set by hand: ask no more
            return MOST_ASKED


@dataclass(frozen=True, kw_only=True)
class Successor:
    """A run of a partition, as far as it may be instead of a retry."""

    id: str
    partition: str
    pipelines: frozenset[str] | None
    created_at: datetime

    def replaces(self, failed: FailedRun) -> bool:
        """Whether somebody has launched it since, for what may be the same build."""
        return (
            self.id != failed.id
            and self.partition == failed.partition
            and self.created_at > failed.created_at
            and (self.pipelines is None or failed.pipelines is None or not self.pipelines.isdisjoint(failed.pipelines))
        )


class RetryFacts(Protocol):
    """What Dagster's database says; each is one question, however many runs it is about."""

    def group_sizes(self, roots: Collection[str]) -> Mapping[str, int]:
        """How many runs try each of these again, itself included; without those that were deleted."""

    def unfinished_backfills(self, ids: Collection[str]) -> AbstractSet[str]:
        """Those backfills that go on."""

    def successors(self, partitions: Collection[str], *, since: datetime) -> Sequence[Successor]:
        """The runs of these partitions that were created after a moment."""


def missed_retries(
    failures: Sequence[FailedRun], facts: RetryFacts, *, retries: RunRetries, now: datetime
) -> frozenset[str]:
    """IDs of the failed runs that Dagster was to retry, and did not.

    It gives up when its code server is away at that moment, and says so in the tag. And it passes over a failure that
    it reads in the moment between the event and the run's new status; then the tag announces a retry for ever. So this
    decides as Dagster does (`auto_reexecution_should_retry_run`; a test compares the two): where the answer is yes and
    no retry comes, the try was in vain. A run of the same build that somebody has launched since is instead of the
    retry.
    """
    due = [run for run in failures if _is_due(run, now) and _is_retried(run, retries)]
    if due:
        sizes = facts.group_sizes({run.root for run in due})
        due = [run for run in due if run.root in sizes and sizes[run.root] <= _most(run, retries)]
    if backfills := {backfill for run in due if (backfill := _backfill(run))}:
        going_on = facts.unfinished_backfills(backfills)
        due = [run for run in due if _backfill(run) in (None, *going_on)]
    if due:
        since = min(run.created_at for run in due)
        by_partition: dict[str, list[Successor]] = {}
        for successor in facts.successors({run.partition for run in due}, since=since):
            by_partition.setdefault(successor.partition, []).append(successor)
        due = [run for run in due if not any(one.replaces(run) for one in by_partition.get(run.partition, ()))]
    return frozenset(run.id for run in due)


def _is_due(run: FailedRun, now: datetime) -> bool:
    """Whether Dagster has had its time to retry it, and we have not asked often enough yet."""
    gave_up = run.tags.get(names.DagsterTag.WILL_RETRY) == "false"
    return run.asked < MOST_ASKED and (gave_up or now >= run.ended_at + DECIDED)


def _is_retried(run: FailedRun, retries: RunRetries) -> bool:
    """Whether Dagster retries failures of its kind at all."""
    tag = run.tags.get(names.DagsterTag.RETRY_ON_OP_FAILURE)
    after_step_failure = retries.after_step_failure if tag is None else tag.lower() not in ("false", "none", "0", "")
    return after_step_failure or run.tags.get(names.DagsterTag.FAILURE_REASON) != "STEP_FAILURE"


def _most(run: FailedRun, retries: RunRetries) -> int:
    try:
        return int(run.tags.get(names.DagsterTag.MAX_RETRIES, retries.most))
    except ValueError:
        return 0


def _backfill(run: FailedRun) -> str | None:
    return run.tags.get(names.DagsterTag.BACKFILL)
