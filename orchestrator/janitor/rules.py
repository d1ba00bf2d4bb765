"""The janitor's rules: what to end, from what EC2, MLflow and Dagster hold. Pure: it looks at nothing itself.

When in doubt, nothing is touched: what is left alone by mistake costs a minute, what is ended by mistake
costs a training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from dagster import DagsterRunStatus

from orchestrator.janitor import retries
from orchestrator.janitor.snapshot import BuildKey, OpenRun, Snapshot, TrainingRun
from orchestrator.pipeline.training.deadline import describe
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

SUBMITTED = timedelta(minutes=5)
"""How long Dagster may take to queue a run that it has created; one that it forgot would wait for ever."""


LATE = timedelta(minutes=2)
"""How long after its deadline an instance is left to its other keepers: its supervisor, itself, and its follower."""

UNHEARD = timedelta(minutes=10)
"""How long the worker of a run whose instance was ended as late may take to say so itself."""


@dataclass(frozen=True, kw_only=True)
class Action(ABC):
    """One thing to do, and why. As text, it is an order: `terminate instance i-… (iris 7)`."""

    why: str

    @property
    @abstractmethod
    def partition(self) -> str:
        """Of the builds that it is about, as `tag_value` writes it."""

    @property
    @abstractmethod
    def done(self) -> str:
        """What to log when it is done; begins with the same words each time."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class EndRun(Action):
    """Tell Dagster that the worker of a run is gone."""

    run: TrainingRun
    status: Literal["failed", "canceled"]
    final: bool = False
    """Whether its training failed, so that it is not retried."""

    @property
    def partition(self) -> str:
        return self.run.partition

    @property
    def done(self) -> str:
        return f"{'Failed' if self.status == 'failed' else 'Canceled'} Dagster run {self.run.id}"

    def __str__(self) -> str:
        return f"mark Dagster run {self.run.id} as {self.status}"


@dataclass(frozen=True, kw_only=True)
class RetryRun(Action):
    """Ask Dagster once more to retry a run."""

    run: TrainingRun

    @property
    def partition(self) -> str:
        return self.run.partition

    @property
    def done(self) -> str:
        return f"Asked for the retry of Dagster run {self.run.id}"

    def __str__(self) -> str:
        return f"have Dagster run {self.run.id} retried"


@dataclass(frozen=True, kw_only=True)
class Terminate(Action):
    """Terminate an instance."""

    instance: Instance
    late_runs: tuple[str, ...] = field(default=(), compare=False)
    """IDs of the unfinished runs whose training it is, when it is ended because it ran past its deadline."""

    @property
    def partition(self) -> str:
        return self.instance.partition

    @property
    def done(self) -> str:
        return f"Terminated instance {self._name}"

    @property
    def _name(self) -> str:
        return f"{self.instance.id} ({self.instance.pipeline} {self.instance.partition})"

    def __str__(self) -> str:
        return f"terminate instance {self._name}"


@dataclass(frozen=True, kw_only=True)
class CloseRun(Action):
    """End an MLflow run."""

    run: OpenRun
    status: Literal["FINISHED", "FAILED", "KILLED"]

    @property
    def partition(self) -> str:
        return self.run.build.partition

    @property
    def done(self) -> str:
        return f"Closed MLflow run {self._name}"

    @property
    def _name(self) -> str:
        return f"{self.run.id} ({self.run.pipeline} {self.run.partition}) as {self.status}"

    def __str__(self) -> str:
        return f"end MLflow run {self._name}"


def decide(snapshot: Snapshot, now: datetime) -> list[Action]:
    """What to do, in the order in which to do it.

    MLflow runs come last, and are looked at last: what nobody has looked for yet is not in `open_runs`.
    """
    rules = _Rules(snapshot, now)
    ended = {action.run.id: action for action in (*rules.late_runs(), *rules.dead_runs())}
    return [*ended.values(), *rules.missed_retries(), *rules.unwanted_instances(), *rules.abandoned_runs()]


def live_attempts(snapshot: Snapshot) -> int:
    """How many runs that surely train one of our pipelines are not finished."""
    return sum(run.ours and not run.finished for run in snapshot.runs)


def missing_late(snapshot: Snapshot, now: datetime) -> frozenset[str]:
    """IDs of the instances that unfinished runs have launched, that should have ended, and that are not in sight.

    Most of them have ended. One whose tags were taken away is found by its ID alone.
    """
    seen = {instance.id for instance in snapshot.instances}
    launches = [run.launch for run in snapshot.runs if run.launch is not None and run.ours and not run.finished]
    late = {launch.instance_id for launch in launches if now - LATE >= launch.expires_at}
    return frozenset(late - seen) if snapshot.instances_known else frozenset()


class _Rules:
    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self._snapshot = snapshot
        self._now = now
        self._runs = {run.id: run for run in snapshot.runs}
        self._ours = [instance for instance in snapshot.instances if instance.deployment in snapshot.deployments]
        self._of_partition: dict[str, list[TrainingRun]] = defaultdict(list)
        for run in snapshot.runs:
            self._of_partition[run.partition].append(run)

    # ---- Dagster

    def dead_runs(self) -> Iterator[EndRun]:
        if self._now - self._snapshot.watching_since < SETTLE:
            return
        for run in self._snapshot.runs:
            if why := run.ours and self._dead(run):
                status: Literal["failed", "canceled"] = (
                    "canceled" if run.status == DagsterRunStatus.CANCELING else "failed"
                )
                yield EndRun(run=run, status=status, why=why, final=self._is_late(run))

    def late_runs(self) -> Iterator[EndRun]:
        for run in self._snapshot.runs:
            if run.finished or not run.ours or run.late_since is None or not self._was_late(run):
                continue
            if run.started_at is None or self._now - UNHEARD >= run.late_since:
                minutes = run.launch.max_minutes if run.launch else None
                why = f"its training {describe(minutes)}, and its instance was terminated"
                yield EndRun(run=run, status="failed", why=why, final=True)

    def _was_late(self, run: TrainingRun) -> bool:
        """Whether its own instance was ended as late; a re-execution by hand begins with its parent's tag."""
        return run.late_since is not None and (run.created_at is None or run.created_at <= run.late_since)

    def _is_late(self, run: TrainingRun) -> bool:
        """Whether its instance was ended as late, or is about to be."""
        launched = run.launch.instance_id if run.launch else ""
        visible = (*self._ours, *self._snapshot.disguised)
        return self._was_late(run) or any(instance.id == launched and self._late(instance) for instance in visible)

    def _dead(self, run: TrainingRun) -> str | None:
        if run.status == DagsterRunStatus.NOT_STARTED:
            since = max(run.created_at or self._now, self._snapshot.watching_since)
            return "it was created, and never queued" if self._now >= since + SUBMITTED else None
        # One that is STARTING has no lease of its own yet; Dagster's run monitoring has a timeout for it.
        if run.status not in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
            return None
        until = self._lease_end(run)
        if until is None or not self._expired(until):
            return None
        if self._is_late(run):
            return f"its training {describe(run.launch.max_minutes if run.launch else None)}, and its worker is gone"
        return (
            f"its worker is gone: its lease ended at {until:%H:%M:%S} UTC, "
            f"and a live worker renews it every {RENEW_SECONDS:g} s; look at what happened to its host or container"
        )

    def missed_retries(self) -> Iterator[Action]:
        for run in self._snapshot.runs:
            if run.retry_missed and run.ours and self._can_be_retried(run):
                why = "Dagster was to retry it and did not: its code server was away, or it missed the failure"
                yield RetryRun(run=run, why=why)

    def _can_be_retried(self, run: TrainingRun) -> bool:
        """Whether Dagster finds its job: that of a pipeline which cannot be read is not there until it is mended."""
        return not any(self._snapshot.is_broken(pipeline) for pipeline in run.pipelines or ())

    def _lease_end(self, run: TrainingRun) -> datetime | None:
        if run.started_at is None:
            return None
        ends = [run.lease_until, *(instance.lease_until for instance in self._ours if instance.dagster_run == run.id)]
        return max([run.started_at + LEASE, *(end for end in ends if end)])

    def _expired(self, until: datetime) -> bool:
        """Whether a lease has ended, and not only because its worker was asleep since the look before."""
        before = self._snapshot.looked_before
        return until <= self._now and (before is None or until < before + SPARE)

    # ---- EC2

    def unwanted_instances(self) -> Iterator[Action]:
        for instance in self._ours:
            broken = self._snapshot.is_broken(instance.pipeline)
            if broken and (why := self._overdue(instance)):
                yield Terminate(instance=instance, why=why)
            elif why := self._late(instance):
                yield Terminate(instance=instance, why=why, late_runs=self._trained_on(instance))
            elif not broken and (why := self._orphaned(instance)):
                yield Terminate(instance=instance, why=why)
        for instance in self._snapshot.disguised:
            if why := self._late(instance):
                why += "; it does not bear our tags any more: look at who may change tags in this account"
                yield Terminate(instance=instance, why=why, late_runs=self._trained_on(instance))

    def _late(self, instance: Instance) -> str | None:
        """Whether an instance runs that should have ended, by its tags or by what its runs have kept.

        The tag alone could be moved, and LaunchTime with MAX_TRAINING_MINUTES would end what was launched with more.
        """
        launches = [run.launch for run in self._runs.values() if run.launch and run.launch.instance_id == instance.id]
        minutes = min((launch.max_minutes for launch in launches if launch.max_minutes), default=None)
        ends = [instance.power_off_at, *(launch.expires_at for launch in launches)]
        if minutes is not None:
            ends.append(instance.launched_at + timedelta(minutes=minutes))
        past = [end for end in ends if end is not None and self._now - LATE >= end]
        return f"it {describe(minutes)}: it was to end at {min(past):%Y-%m-%d %H:%M} UTC" if past else None

    def _trained_on(self, instance: Instance) -> tuple[str, ...]:
        """The unfinished runs that use it, or that are to take it over: a retry begins with its parent's record."""
        return tuple(sorted(run.id for run in self._users(instance)))

    def _users(self, instance: Instance) -> Iterator[TrainingRun]:
        """The same; by what they have kept, because the instance may name anybody."""
        for run in self._runs.values():
            if not run.finished and run.launch is not None and run.launch.instance_id == instance.id:
                yield run

    def _overdue(self, instance: Instance) -> str | None:
        """Whether the deadline of a machine has passed about which nothing else is known."""
        if instance.power_off_at is None or self._now < instance.power_off_at:
            return None
        return (
            f"it was to power itself off at {instance.power_off_at:%Y-%m-%d %H:%M} UTC; why it runs, nobody knows, "
            f"because the defs.yaml of pipeline {instance.pipeline} cannot be read"
        )

    def _orphaned(self, instance: Instance) -> str | None:
        build = BuildKey(instance.pipeline, instance.partition)
        if self._wanted(build, instance.dagster_run) or any(self._users(instance)):
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
        if run.retry_missed and run.ours:
            return True
        if run.will_retry is False:
            return False
        if run.retry in self._runs:
            return False  # the retry speaks for itself
        # Retries are launched by the same daemon as the janitor: while it was away, no time has passed.
        since = max(run.ended_at or self._snapshot.watching_since, self._snapshot.watching_since)
        return self._now < since + (retries.LAUNCHED if run.will_retry else retries.DECIDED)

    # ---- MLflow

    def abandoned_runs(self) -> Iterator[Action]:
        named = {instance.mlflow_run for instance in self._ours}
        in_use: dict[BuildKey, datetime] = {}
        for run in self._snapshot.open_runs:
            owner = self._runs.get(run.dagster_run)
            if run.ended_as is None and run.id in named and owner is not None and not owner.finished:
                in_use[run.build] = max(in_use.get(run.build, run.started_at), run.started_at)
        for run in self._snapshot.open_runs:
            if run.deployment and tag_value(run.deployment) not in self._snapshot.deployments:
                continue
            if run.ended_as is not None:
                if not self._wanted(run.build, run.dagster_run):
                    yield CloseRun(run=run, status=run.ended_as, why="a process that lived on called it FINISHED")
            elif self._wanted(run.build, run.dagster_run):
                if run.root not in named and run.build in in_use and run.started_at <= in_use[run.build]:
                    yield self._close(run, "another run of the same build is in use instead")
            elif run.dagster_run in self._runs:
                yield self._close(run, f"Dagster run {run.dagster_run} is over and left it open")
            elif self._unknown_for_good(run, named):
                yield self._close(run, f"Dagster knows no run {run.dagster_run}, and no instance is left of it")

    def _unknown_for_good(self, run: OpenRun, named: set[str]) -> bool:
        """Whether nobody will ever end it; without a deployment, another installation may."""
        alone = self._snapshot.instances_known and run.root not in named and bool(run.deployment)
        return alone and self._now >= max(run.started_at, self._snapshot.watching_since) + retries.LAUNCHED

    def _close(self, run: OpenRun, why: str) -> CloseRun:
        owner = self._runs.get(run.dagster_run)
        if owner is not None and owner.trained == run.root:
            return CloseRun(run=run, status="FINISHED", why="its training process exited 0 while MLflow was away")
        if owner is not None and self._was_late(owner):
            minutes = owner.launch.max_minutes if owner.launch else None
            return CloseRun(run=run, status="FAILED", why=f"its training {describe(minutes)}; {why}")
        killed = owner is not None and owner.status == DagsterRunStatus.CANCELED
        return CloseRun(run=run, status="KILLED" if killed else "FAILED", why=why)
