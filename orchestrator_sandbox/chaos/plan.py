"""What a fault campaign does, decided by its seed alone: which faults, in which phase, when and for how long."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.names import Step

IDLE = "idle"
"""The phase before a run: the fault comes first, then the green build."""

PHASES = (*Step.ALL, IDLE)


class FaultKind(StrEnum):
    """What can go wrong."""

    WORKER_KILLED = "run worker killed"
    DAEMON_KILLED = "daemon killed"
    CODE_SERVER_KILLED = "code server killed"
    EVERYTHING_KILLED = "all of Dagster killed"
    SSH_CUT = "SSH connections cut"
    SSHD_AWAY = "sshd away"
    TRAFFIC_SWALLOWED = "traffic swallowed"
    INSTANCE_TERMINATED = "instance terminated"
    AWS_ERRORS = "AWS errors"
    AWS_THROTTLING = "AWS throttling"
    AWS_NO_CAPACITY = "AWS has no capacity"
    AWS_DOWN = "AWS down"
    JENKINS_DOWN = "Jenkins down"
    JENKINS_SLOW = "Jenkins slow"
    JENKINS_HTML = "Jenkins talks HTML"
    MLFLOW_DOWN = "MLflow down"
    MLFLOW_RESTARTED = "MLflow restarted"
    MLFLOW_SLOW = "MLflow slow"
    MLFLOW_HTML = "MLflow talks HTML"
    CANCELLED = "cancelled in the UI"
    TRAINING_FAILS = "training exits 1"


PHASES_OF: dict[FaultKind, tuple[str, ...]] = {
    FaultKind.WORKER_KILLED: Step.ALL,
    FaultKind.DAEMON_KILLED: PHASES,
    FaultKind.CODE_SERVER_KILLED: PHASES,
    FaultKind.EVERYTHING_KILLED: PHASES,
    FaultKind.SSH_CUT: (Step.TRAIN,),
    FaultKind.SSHD_AWAY: (Step.PROVISION, Step.TRAIN),
    FaultKind.TRAFFIC_SWALLOWED: (Step.PROVISION, Step.TRAIN),
    FaultKind.INSTANCE_TERMINATED: (Step.PROVISION, Step.TRAIN, Step.TERMINATE),
    FaultKind.AWS_ERRORS: (Step.RESOLVE, Step.PROVISION, Step.TRAIN, Step.TERMINATE),
    FaultKind.AWS_THROTTLING: (Step.RESOLVE, Step.PROVISION, Step.TRAIN, Step.TERMINATE),
    FaultKind.AWS_NO_CAPACITY: (Step.RESOLVE,),
    FaultKind.AWS_DOWN: (Step.RESOLVE, Step.PROVISION, Step.TRAIN, Step.TERMINATE),
    FaultKind.JENKINS_DOWN: (Step.RESOLVE, Step.TRAIN, IDLE),
    FaultKind.JENKINS_SLOW: (Step.RESOLVE, IDLE),
    FaultKind.JENKINS_HTML: (Step.RESOLVE, IDLE),
    FaultKind.MLFLOW_DOWN: PHASES,
    FaultKind.MLFLOW_RESTARTED: Step.ALL,
    FaultKind.MLFLOW_SLOW: Step.ALL,
    FaultKind.MLFLOW_HTML: Step.ALL,
    FaultKind.CANCELLED: Step.ALL,
    FaultKind.TRAINING_FAILS: (Step.TRAIN,),
}
"""The phases in which each kind means something."""

LATEST_SECONDS = {Step.PROVISION: 1.5, Step.TRAIN: 4.0}
"""How far into a phase a fault may come, in seconds; the other phases are over at once."""

OUTAGE_SECONDS_CHOICES = (3.0, 8.0, 20.0, 60.0)
"""How long something is away, in seconds: from a hiccup to the minute that must be ridden out."""

SERVER_AWAY: dict[FaultKind, str] = {
    FaultKind.SSHD_AWAY: "instance",
    FaultKind.TRAFFIC_SWALLOWED: "instance",
    FaultKind.AWS_DOWN: "AWS",
    FaultKind.JENKINS_DOWN: "Jenkins",
    FaultKind.JENKINS_HTML: "Jenkins",
    FaultKind.MLFLOW_DOWN: "MLflow",
    FaultKind.MLFLOW_HTML: "MLflow",
}
"""What is away in an outage; the first in each phase takes the whole minute."""

MAX_TRIES = 3
"""How often a fault is tried that finds nothing to harm."""


@dataclass(frozen=True)
class PlannedFault:
    """One fault of a campaign.

    Attributes:
        index: its place in the campaign.
        phase: the step of the build's run that it is meant for, or `IDLE`.
        after: how long that step has been under way when it comes, in seconds.
        seconds: how long it lasts at least, where it lasts at all.
        times: how many calls it spoils, where it spoils calls.
    """

    index: int
    kind: FaultKind
    phase: str
    after: float
    seconds: float
    times: int

    def __str__(self) -> str:
        seconds = f" for {self.seconds:g} s" if self.kind in SERVER_AWAY else ""
        return f"#{self.index} {self.kind} in {self.phase}{seconds}"


def plan(seed: int) -> Iterator[PlannedFault]:
    """The faults of a campaign, without end; always the same for a seed.

    Every kind in every phase comes once before anything comes twice, and the first outage of each server in each
    phase lasts a minute.

    Args:
        seed: of the random numbers.
    """
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    places = [(kind, phase) for kind, phases in PHASES_OF.items() for phase in phases]
    index = itertools.count()
    borne: set[tuple[str, str]] = set()
    while True:
        dice.shuffle(places)
        for kind, phase in places:
            fault = PlannedFault(
                index=next(index),
                kind=kind,
                phase=phase,
                after=round(dice.uniform(0, LATEST_SECONDS.get(phase, 0.2)), 2),
                seconds=dice.choice(OUTAGE_SECONDS_CHOICES),
                times=dice.randint(1, 6),
            )
            if kind in SERVER_AWAY and (place := (SERVER_AWAY[kind], phase)) not in borne:
                borne.add(place)
                fault = replace(fault, seconds=OUTAGE_SECONDS_CHOICES[-1])
            yield fault


class FaultQueue:
    """Which fault comes next: one that missed, once more and just the same, else the next of the plan.

    Args:
        faults: the plan.
        hits: ends when so many have hit.

    Attributes:
        hits: how many have.
    """

    def __init__(self, faults: Iterator[PlannedFault], *, hits: int) -> None:
        self._faults = faults
        self._wanted = hits
        self._again: deque[PlannedFault] = deque()
        self._tries: Counter[PlannedFault] = Counter()
        self._under_way = 0
        self.hits = 0

    def next(self) -> PlannedFault | None:
        """The fault to do now; None while those under way may be enough, or when there is none left."""
        if self.hits + self._under_way >= self._wanted:
            return None
        fault = self._again.popleft() if self._again else next(self._faults, None)
        if fault is not None:
            self._under_way += 1
            self._tries[fault] += 1
        return fault

    def done(self, fault: PlannedFault, *, hit: bool) -> None:
        """Note what became of one."""
        self._under_way -= 1
        self.hits += hit
        if not hit and self._tries[fault] < MAX_TRIES:
            self._again.append(fault)
