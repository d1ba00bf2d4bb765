"""What must hold for a build when all has settled, whatever went wrong: a pure function of the facts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.sandbox.chaos_training import Training

ORPHAN_SECONDS = 180.0
"""An instance or an open MLflow run without a live attempt must be gone within this time."""


@dataclass(frozen=True)
class Ended:
    """An attempt as it ended.

    Attributes:
        status: SUCCESS, FAILURE or CANCELED; anything else has not ended.
        why: what the run says of its failure.
    """

    id: str
    status: str
    why: str | None = None


@dataclass(frozen=True)
class Record:
    """One materialisation of the model: the Dagster run that recorded it, and the MLflow run that it names."""

    attempt: str
    mlflow_run: str


@dataclass(frozen=True)
class Facts:
    """All that there is about one green build.

    Attributes:
        attempts: its Dagster runs, the oldest first.
        live_instances: its instances that are not terminated.
        left_processes: processes of its instances that are terminated.
        mlflow_runs: MLflow run → status.
        records: the materialisations of its model.
        trainings: what the trainings themselves wrote down.
        orphaned_seconds: the longest time that something of it had no live attempt.
    """

    partition: str
    attempts: tuple[Ended, ...]
    live_instances: tuple[str, ...] = ()
    left_processes: tuple[str, ...] = ()
    mlflow_runs: tuple[tuple[str, str], ...] = ()
    records: tuple[Record, ...] = ()
    trainings: tuple[Training, ...] = ()
    orphaned_seconds: float = 0

    @property
    def finished(self) -> set[str]:
        """The MLflow runs that are FINISHED."""
        return {run for run, status in self.mlflow_runs if status == "FINISHED"}


def violations(facts: Facts) -> list[str]:
    """Every promise that is broken, in plain words; empty when all hold."""
    return [f"build {facts.partition}: {fault}" for check in CHECKS for fault in check(facts)]


def nothing_is_left(facts: Facts) -> Iterator[str]:
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


def every_build_comes_to_an_end(facts: Facts) -> Iterator[str]:
    """A green build is trained, or its last run is red and says why, or somebody cancelled it."""
    if not facts.attempts:
        yield "it was never trained"
        return
    for attempt in facts.attempts:
        if attempt.status not in ("SUCCESS", "FAILURE", "CANCELED"):
            yield f"run {attempt.id} is still {attempt.status}"
    last = facts.attempts[-1]
    if last.status == "FAILURE" and not (last.why or "").strip():
        yield f"run {last.id} is red and does not say why"


def green_means_trained(facts: Facts) -> Iterator[str]:
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


def red_means_not_trained(facts: Facts) -> Iterator[str]:
    """A red run of a training that went well names its MLflow run, so that it can be recorded without training."""
    last = facts.attempts[-1] if facts.attempts else None
    if last and last.status == "FAILURE" and not any(attempt.status == "SUCCESS" for attempt in facts.attempts):
        for run in sorted(facts.finished):
            if run not in (last.why or ""):
                yield f"run {last.id} is red, MLflow run {run} is FINISHED, and only the latter knows: {last.why!r}"


def one_training_at_a_time(facts: Facts) -> Iterator[str]:
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
    one_training_at_a_time,
)
