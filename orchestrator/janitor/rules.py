"""The janitor's rules: what to end, from what EC2, MLflow and Dagster hold. Pure: it looks at nothing itself.

When in doubt, nothing is touched: what is left alone by mistake costs a minute, what is ended by mistake
costs a training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dagster import DagsterRunStatus

from orchestrator.janitor.snapshot import BuildKey, OpenRun, TrainingRun, World
from orchestrator.pipeline.training.lease import LEASE, RENEW_SECONDS
from orchestrator.resources.ec2 import Instance, tag_value

SETTLE = timedelta(seconds=RENEW_SECONDS + 5)
"""How long a live worker may need to renew its lease once nothing keeps it from it, and so how long the janitor must
have been watching before it believes that one was not renewed. A machine that was asleep, or a database that
was away, kept both of them from their work."""

SPARE = LEASE - SETTLE
"""How much a live worker's lease has left at any moment. One that ended sooner than this after the janitor's last look
was not being renewed even then. One that ended later may be of a worker that has been asleep since: it is looked
at once more. Looks that are 60 to 65 s apart, as Dagster makes them, find only the former kind."""

NEW = timedelta(minutes=2)
"""How long a new instance may be of a run that Dagster does not know (yet)."""

RETRY_DECIDED = timedelta(minutes=1)
"""How long Dagster may take to write on a failed run whether it will be retried."""

RETRY_LAUNCHED = timedelta(minutes=10)
"""How long Dagster may take to launch a retry that it has announced."""

SUBMITTED = timedelta(minutes=5)
"""How long Dagster may take to queue a run that it has created; one that it forgot would wait for ever."""


@dataclass(frozen=True)
class EndRun:
    """Tell Dagster that the worker of a run is gone."""

    run: TrainingRun
    status: Literal["failed", "canceled"]
    why: str

    @property
    def partition(self) -> str:
        """Of the builds that it is about, as `tag_value` writes it."""
        return self.run.partition

    def __str__(self) -> str:
        return f"mark Dagster run {self.run.id} as {self.status}"


@dataclass(frozen=True)
class RetryRun:
    """Ask Dagster once more to retry a run."""

    run: TrainingRun
    why: str

    @property
    def partition(self) -> str:
        """Of the builds that it is about, as `tag_value` writes it."""
        return self.run.partition

    def __str__(self) -> str:
        return f"have Dagster run {self.run.id} retried"


@dataclass(frozen=True)
class Terminate:
    """Terminate an instance."""

    instance: Instance
    why: str

    @property
    def partition(self) -> str:
        """Of the builds that it is about, as `tag_value` writes it."""
        return self.instance.partition

    def __str__(self) -> str:
        return f"terminate instance {self.instance.id} ({self.instance.pipeline} {self.instance.partition})"


@dataclass(frozen=True)
class CloseRun:
    """End an MLflow run."""

    run: OpenRun
    status: Literal["FINISHED", "FAILED", "KILLED"]
    why: str

    @property
    def partition(self) -> str:
        """Of the builds that it is about, as `tag_value` writes it."""
        return self.run.build.partition

    def __str__(self) -> str:
        return f"end MLflow run {self.run.id} ({self.run.pipeline} {self.run.partition}) as {self.status}"


Action = EndRun | RetryRun | Terminate | CloseRun


def decide(world: World, now: datetime) -> list[Action]:
    """What to do about a state of the world, in the order in which to do it."""
    view = _View(world, now)
    return [*view.dead_runs(), *view.failed_retries(), *view.orphaned_instances(), *view.abandoned_runs()]


def live_attempts(world: World) -> int:
    """How many runs that surely train one of our pipelines are not finished."""
    return sum(run.ours and not run.finished for run in world.runs)


class _View:
    def __init__(self, world: World, now: datetime) -> None:
        self._world = world
        self._now = now
        self._runs = {run.id: run for run in world.runs}
        self._ours = [one for one in world.instances if one.deployment in world.deployments]
        self._of_partition: dict[str, list[TrainingRun]] = defaultdict(list)
        for run in world.runs:
            self._of_partition[run.partition].append(run)

    # ---- Dagster

    def dead_runs(self) -> Iterator[Action]:
        if self._now - self._world.watching_since < SETTLE:
            return
        for run in self._world.runs:
            if why := run.ours and self._dead(run):
                yield EndRun(run, "canceled" if run.status == DagsterRunStatus.CANCELING else "failed", why)

    def _dead(self, run: TrainingRun) -> str | None:
        if run.status == DagsterRunStatus.NOT_STARTED:
            since = max(run.created_at or self._now, self._world.watching_since)
            return "it was created, and never queued" if self._now >= since + SUBMITTED else None
        # One that is STARTING has no lease of its own yet; Dagster's run monitoring has a timeout for it.
        if run.status not in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
            return None
        until = self._lease_end(run)
        if until is None or not self._expired(until):
            return None
        return (
            f"its worker is gone: its lease ended at {until:%H:%M:%S} UTC, "
            f"and a live worker renews it every {RENEW_SECONDS:g} s; look at what happened to its host or container"
        )

    def failed_retries(self) -> Iterator[Action]:
        for run in self._world.runs:
            if run.retry_failed and run.ours:
                why = "Dagster was to retry it and did not: its code server was away, or it missed the failure"
                yield RetryRun(run, why)

    def _lease_end(self, run: TrainingRun) -> datetime | None:
        if run.started_at is None:
            return None
        told = [run.lease_until, *(one.lease_until for one in self._ours if one.dagster_run == run.id)]
        return max([run.started_at + LEASE, *(until for until in told if until)])

    def _expired(self, until: datetime) -> bool:
        """Whether a lease has ended, and not only because its worker was asleep since the look before."""
        before = self._world.looked_before
        return until <= self._now and (before is None or until < before + SPARE)

    # ---- EC2

    def orphaned_instances(self) -> Iterator[Action]:
        for instance in self._ours:
            if why := self._orphaned(instance):
                yield Terminate(instance, why)

    def _orphaned(self, instance: Instance) -> str | None:
        if self._wanted(BuildKey(instance.pipeline, instance.partition), instance.dagster_run):
            return None
        owner = self._runs.get(instance.dagster_run)
        if owner is not None:
            return f"its run {owner.id} ended as {owner.status.value}, and no other run may take it over"
        # A finished run may also have been deleted, so only time tells.
        if self._now < instance.launched_at + NEW or not self._expired(instance.lease_until or instance.launched_at):
            return None
        return f"Dagster knows no run {instance.dagster_run or '(it names none)'}, and its lease has ended"

    def _wanted(self, build: BuildKey, owner_id: str) -> bool:
        """Whether an attempt at this build is live or may still come."""
        owner = self._runs.get(owner_id)
        concerned = [run for run in self._of_partition[build.partition] if run.may_train(build)]
        return any(not run.finished or self._awaits_retry(run) for run in [*concerned, *([owner] if owner else [])])

    def _awaits_retry(self, run: TrainingRun) -> bool:
        if run.status != DagsterRunStatus.FAILURE:
            return False
        if run.retry_failed and run.ours:
            return True
        if run.will_retry is False:
            return False
        if run.retry in self._runs:
            return False  # the retry speaks for itself
        # Retries are launched by the same daemon as the janitor: while it was away, no time has passed.
        since = max(run.ended_at or self._world.watching_since, self._world.watching_since)
        return self._now < since + (RETRY_LAUNCHED if run.will_retry else RETRY_DECIDED)

    # ---- MLflow

    def abandoned_runs(self) -> Iterator[Action]:
        named = {one.mlflow_run for one in self._ours}
        in_use: dict[BuildKey, datetime] = {}
        for run in self._world.open_runs:
            owner = self._runs.get(run.dagster_run)
            if run.id in named and owner is not None and not owner.finished:
                in_use[run.build] = max(in_use.get(run.build, run.started_at), run.started_at)
        for run in self._world.open_runs:
            if run.deployment and tag_value(run.deployment) not in self._world.deployments:
                continue
            if self._wanted(run.build, run.dagster_run):
                if run.id not in named and run.build in in_use and run.started_at <= in_use[run.build]:
                    yield self._close(run, "another run of the same build is in use instead")
            elif run.dagster_run in self._runs:
                yield self._close(run, f"Dagster run {run.dagster_run} is over and left it open")
            elif self._unknown_for_good(run, named):
                yield self._close(run, f"Dagster knows no run {run.dagster_run}, and no instance is left of it")

    def _unknown_for_good(self, run: OpenRun, named: set[str]) -> bool:
        """Whether nobody will ever end it; without a deployment, another installation may."""
        alone = self._world.instances_known and run.id not in named and bool(run.deployment)
        return alone and self._now >= max(run.started_at, self._world.watching_since) + RETRY_LAUNCHED

    def _close(self, run: OpenRun, why: str) -> CloseRun:
        owner = self._runs.get(run.dagster_run)
        if owner is not None and owner.trained == run.id:
            return CloseRun(run, "FINISHED", "its training process exited 0 while MLflow was away")
        killed = owner is not None and owner.status == DagsterRunStatus.CANCELED
        return CloseRun(run, "KILLED" if killed else "FAILED", why)
