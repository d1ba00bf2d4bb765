"""What a fault campaign does, decided by its seed alone: which faults, in which phase, when and for how long."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

IDLE = "idle"
"""No run of the build yet: the fault comes first, then the green build."""

STEPS = ("resolve", "provision", "train", "terminate", "record")
PHASES = (*STEPS, IDLE)


class Kind(StrEnum):
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


WHERE: dict[Kind, tuple[str, ...]] = {
    Kind.WORKER_KILLED: STEPS,
    Kind.DAEMON_KILLED: PHASES,
    Kind.CODE_SERVER_KILLED: PHASES,
    Kind.EVERYTHING_KILLED: PHASES,
    Kind.SSH_CUT: ("train",),
    Kind.SSHD_AWAY: ("provision", "train"),
    Kind.TRAFFIC_SWALLOWED: ("provision", "train"),
    Kind.INSTANCE_TERMINATED: ("provision", "train", "terminate"),
    Kind.AWS_ERRORS: ("resolve", "provision", "train", "terminate"),
    Kind.AWS_THROTTLING: ("resolve", "provision", "train", "terminate"),
    Kind.AWS_NO_CAPACITY: ("resolve",),
    Kind.AWS_DOWN: ("resolve", "provision", "train", "terminate"),
    Kind.JENKINS_DOWN: ("resolve", "train", IDLE),
    Kind.JENKINS_SLOW: ("resolve", IDLE),
    Kind.JENKINS_HTML: ("resolve", IDLE),
    Kind.MLFLOW_DOWN: PHASES,
    Kind.MLFLOW_RESTARTED: STEPS,
    Kind.MLFLOW_SLOW: STEPS,
    Kind.MLFLOW_HTML: STEPS,
    Kind.CANCELLED: STEPS,
    Kind.TRAINING_FAILS: ("train",),
}
"""The phases in which each kind means something."""

LATEST = {"provision": 1.5, "train": 4.0}
"""How far into a phase a fault may come, in seconds; the other phases are over at once."""

OUTAGES = (3.0, 8.0, 20.0, 60.0)
"""How long something is away, in seconds: from a hiccup to the minute that must be ridden out."""

AWAY: dict[Kind, str] = {
    Kind.SSHD_AWAY: "instance",
    Kind.TRAFFIC_SWALLOWED: "instance",
    Kind.AWS_DOWN: "AWS",
    Kind.JENKINS_DOWN: "Jenkins",
    Kind.JENKINS_HTML: "Jenkins",
    Kind.MLFLOW_DOWN: "MLflow",
    Kind.MLFLOW_HTML: "MLflow",
}
"""What is away in an outage; the first in each phase takes the whole minute."""

TRIES = 3
"""How often a fault is tried that finds nothing to harm."""


@dataclass(frozen=True)
class Fault:
    """One fault of a campaign.

    Attributes:
        index: its place in the campaign.
        phase: the step of the build's run that it is meant for, or `IDLE`.
        after: how long that step has been under way by then, in seconds.
        seconds: how long it lasts at least, where it lasts at all.
        times: how many calls it spoils, where it spoils calls.
    """

    index: int
    kind: Kind
    phase: str
    after: float
    seconds: float
    times: int

    def __str__(self) -> str:
        seconds = f" for {self.seconds:g} s" if self.kind in AWAY else ""
        return f"#{self.index} {self.kind} in {self.phase}{seconds}"


def plan(seed: int) -> Iterator[Fault]:
    """The faults of a campaign, without end; always the same for a seed.

    Every kind in every phase comes once before anything comes twice, and the first outage of each server in each
    phase lasts a minute.

    Args:
        seed: of the random numbers.
    """
    dice = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    places = [(kind, phase) for kind, phases in WHERE.items() for phase in phases]
    index = itertools.count()
    borne: set[tuple[str, str]] = set()
    while True:
        dice.shuffle(places)
        for kind, phase in places:
            fault = Fault(
                index=next(index),
                kind=kind,
                phase=phase,
                after=round(dice.uniform(0, LATEST.get(phase, 0.2)), 2),
                seconds=dice.choice(OUTAGES),
                times=dice.randint(1, 6),
            )
            if kind in AWAY and (place := (AWAY[kind], phase)) not in borne:
                borne.add(place)
                fault = replace(fault, seconds=OUTAGES[-1])
            yield fault


class Agenda:
    """Which fault comes next: one that missed, once more and just the same, else the next of the plan.

    Args:
        faults: the plan.
        hits: ends when so many have hit.

    Attributes:
        hits: how many have.
    """

    def __init__(self, faults: Iterator[Fault], *, hits: int) -> None:
        self._faults = faults
        self._wanted = hits
        self._again: deque[Fault] = deque()
        self._tries: Counter[Fault] = Counter()
        self._under_way = 0
        self.hits = 0

    def next(self) -> Fault | None:
        """The fault to do now; None while those under way may be enough, or when there is none left."""
        if self.hits + self._under_way >= self._wanted:
            return None
        fault = self._again.popleft() if self._again else next(self._faults, None)
        if fault is not None:
            self._under_way += 1
            self._tries[fault] += 1
        return fault

    def done(self, fault: Fault, *, hit: bool) -> None:
        """Note what became of one."""
        self._under_way -= 1
        self.hits += hit
        if not hit and self._tries[fault] < TRIES:
            self._again.append(fault)
