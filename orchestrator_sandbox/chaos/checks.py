"""What must hold for a build when all has settled, whatever went wrong: a pure function of the facts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator_sandbox.chaos.plan import FaultKind
from orchestrator_sandbox.chaos.training import Training

ORPHAN_SECONDS = 180.0
"""An instance or an open MLflow run without a live attempt must be gone within this time."""

UNATTENDED_SECONDS = 300.0
"""Within this time a run whose worker is gone must be recognised, and be retried or cleaned up."""


@dataclass(frozen=True)
class EndedAttempt:
    """An attempt that has ended.

    Attributes:
        status: SUCCESS, FAILURE or CANCELED; anything else has not ended.
        why: what the run says of its failure.
        trained: the MLflow run whose process it saw exit 0, and wrote that down.
    """

    id: str
    status: str
    why: str | None = None
    trained: str | None = None


@dataclass(frozen=True)
class RecordedModel:
    """One materialisation of the model: the Dagster run that recorded it, and the MLflow run that it names."""

    attempt: str
    mlflow_run: str


@dataclass(frozen=True)
class BuildFacts:
    """All that there is about one green build.

    Attributes:
        attempts: its Dagster runs, the oldest first.
        live_instances: its instances that are not terminated.
        left_processes: processes of its instances that are terminated.
        mlflow_runs: MLflow run → status.
        records: the materialisations of its model.
        trainings: what the trainings themselves wrote down.
        kind: what was done to it, or tried without effect; None: nothing.
        settled: whether it came to rest in time.
        orphaned_seconds: the longest time that something of it had no live attempt.
        unattended_seconds: the longest time that no living process looked after something of it.
    """

    partition: str
    attempts: tuple[EndedAttempt, ...]
    kind: FaultKind | None = None
    settled: bool = True
    live_instances: tuple[str, ...] = ()
    left_processes: tuple[str, ...] = ()
    mlflow_runs: tuple[tuple[str, str], ...] = ()
    records: tuple[RecordedModel, ...] = ()
    trainings: tuple[Training, ...] = ()
    orphaned_seconds: float = 0
    unattended_seconds: float = 0

    @property
    def finished(self) -> set[str]:
        """The MLflow runs that are FINISHED."""
        return {run for run, status in self.mlflow_runs if status == "FINISHED"}

    @property
    def seen_to_exit_0(self) -> set[str]:
        """The MLflow runs whose process an attempt saw exit 0; nothing may undo these."""
        return {attempt.trained for attempt in self.attempts if attempt.trained}


def violations(facts: BuildFacts) -> list[str]:
    """Every promise that is broken, in plain words; empty when all hold."""
    return [f"build {facts.partition}: {fault}" for check in CHECKS for fault in check(facts)]


def nothing_is_left(facts: BuildFacts) -> Iterator[str]:
    """No instance, no process and no open MLflow run without an attempt; and none for long."""
    for instance in facts.live_instances:
        yield f"instance {instance} is alive without a live attempt"
    for process in facts.left_processes:
        yield f"a process is left of a terminated instance: {process}"
    for run, status in facts.mlflow_runs:
        if status not in ("FINISHED", "FAILED", "KILLED"):
            yield f"MLflow run {run} is {status} without an attempt"
    if facts.orphaned_seconds > ORPHAN_SECONDS:
        yield f"something had no live attempt for {facts.orphaned_seconds:.0f} s"
    if facts.unattended_seconds > UNATTENDED_SECONDS:
        yield f"no living process looked after something for {facts.unattended_seconds:.0f} s"


def every_build_comes_to_an_end(facts: BuildFacts) -> Iterator[str]:
    """A green build is trained, unless somebody cancelled it, or its training fails: then its last run says why."""
    if not facts.settled:
        yield "it did not come to rest in time"
    if not facts.attempts:
        yield "it was never trained"
        return
    for attempt in facts.attempts:
        if attempt.status not in ("SUCCESS", "FAILURE", "CANCELED"):
            yield f"run {attempt.id} is still {attempt.status}"
        if attempt.status == "CANCELED" and facts.kind is not FaultKind.CANCELLED:
            yield f"run {attempt.id} is CANCELED, and nobody cancelled it"
    last = facts.attempts[-1]
    if last.status != "FAILURE":
        return
    if facts.kind is not FaultKind.TRAINING_FAILS:
        yield f"run {last.id} is red, and its training did not fail: {last.why!r}"
    if not (last.why or "").strip():
        yield f"run {last.id} is red and does not say why"


def green_means_trained(facts: BuildFacts) -> Iterator[str]:
    """Exactly one FINISHED MLflow run, whose process exited 0, and one record with its ID."""
    green = [attempt for attempt in facts.attempts if attempt.status == "SUCCESS"]
    if len(green) > 1:
        yield f"{len(green)} of its runs are green"
    exited_0 = {training.run for training in facts.trainings if training.status == 0}
    recorded = {record.mlflow_run for record in facts.records}
    if green:
        if len(facts.finished) != 1:
            yield f"it is green with {len(facts.finished)} FINISHED MLflow runs: {sorted(facts.finished)}"
        if facts.finished != recorded:
            yield f"it is green, MLflow finished {sorted(facts.finished)}, and {sorted(recorded)} is recorded"
        if not any(record.attempt == green[-1].id for record in facts.records):
            yield f"run {green[-1].id} is green and recorded nothing"
    elif len(facts.finished) > 1:
        yield f"it is not green, and {len(facts.finished)} MLflow runs are FINISHED"
    for run in sorted(facts.finished - exited_0):
        yield f"MLflow run {run} is FINISHED, and no process of it exited 0"
    for attempt, count in Counter(record.attempt for record in facts.records).items():
        if count > 1:
            yield f"run {attempt} recorded {count} times"


def red_means_not_trained(facts: BuildFacts) -> Iterator[str]:
    """A red build has no record."""
    if facts.attempts and facts.attempts[-1].status == "FAILURE":
        for record in facts.records:
            yield f"it is red, and run {record.attempt} recorded MLflow run {record.mlflow_run}"


def exit_0_means_finished(facts: BuildFacts) -> Iterator[str]:
    """MLflow holds what exited 0 as FINISHED, unless it was cancelled, or taken away before anybody saw it exit."""
    if facts.attempts and facts.attempts[-1].status == "CANCELED":
        return
    statuses = dict(facts.mlflow_runs)
    for training in facts.trainings:
        status = statuses.get(training.run)
        if training.status == 0 and status in ("FAILED", "KILLED") and not _lost_unseen(facts, training):
            yield f"the process of MLflow run {training.run} exited 0, and the run is {status}"


def no_training_is_repeated(facts: BuildFacts) -> Iterator[str]:
    """A retry adopts what it finds: only a training whose instance was taken away begins anew, once for each loss."""
    losses = 1 if facts.kind is FaultKind.INSTANCE_TERMINATED else 0
    if len(facts.trainings) > 1 + losses:
        where = ", ".join(f"{training.run} on {training.instance}" for training in facts.trainings)
        yield f"it was trained {len(facts.trainings)} times, and {losses} of its instances were taken away: {where}"
    for training in facts.trainings[:-1]:
        if training.status == 0 and not _lost_unseen(facts, training):
            yield f"the process of MLflow run {training.run} exited 0, and the build was trained again"


def _lost_unseen(facts: BuildFacts, training: Training) -> bool:
    """Whether its instance may have been taken away before anybody could see how it ended: then it counts for nothing.

    MLflow's FINISHED does not prove it: a script sets that itself, and may fail later.
    """
    return facts.kind is FaultKind.INSTANCE_TERMINATED and training.run not in facts.seen_to_exit_0


def one_training_at_a_time(facts: BuildFacts) -> Iterator[str]:
    """No two trainings of a build overlap, and none repeats a step of another in the same MLflow run."""
    for earlier, later in itertools.combinations(facts.trainings, 2):
        if later.began < earlier.seen:
            yield (
                f"two trainings at once: {earlier.run} on {earlier.instance} until {earlier.seen:.1f}, "
                f"{later.run} on {later.instance} from {later.began:.1f}"
            )
    steps = Counter((training.run, step) for training in facts.trainings for step in training.steps)
    for (run, step), count in steps.items():
        if count > 1:
            yield f"step {step} of MLflow run {run} was trained {count} times"


CHECKS = (
    nothing_is_left,
    every_build_comes_to_an_end,
    green_means_trained,
    red_means_not_trained,
    exit_0_means_finished,
    no_training_is_repeated,
    one_training_at_a_time,
)
