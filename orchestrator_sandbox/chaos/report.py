"""What a fault campaign reports in the end: a table for people, and one JSON object for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from rich.console import Console
from rich.table import Table

from orchestrator_sandbox.chaos.checks import BuildFacts, violations
from orchestrator_sandbox.chaos.plan import PHASES, FaultKind, PlannedFault

OUTCOMES = (
    "missed",
    "green",
    "red",
    "cancelled",
    "retried",
    "trained again",
    "orphaned",
    "unattended",
    "settled",
    "violations",
)
WIDTH = 205
"""Of the table, in characters, where no terminal says otherwise."""


@dataclass(frozen=True)
class FaultResult:
    """What became of one try to do a fault.

    Attributes:
        partition: the build that it was meant for.
        missed: why it harmed nothing; None when it did.
        outcome: status of the build's last run; "" when there is none.
        why: why that run is red.
        attempts: Dagster runs that the build took.
        trainings: training processes that the build took.
        lasted_seconds: how long something of the world was away or mad; 0 for what is done at once.
        settled_seconds: from the fault until nothing was under way or left.
        orphaned_seconds: the longest time that something had no live attempt, as Dagster knows them.
        unattended_seconds: the longest time that no living process looked after it, from the fault on.
        violations: the promises that were broken.
    """

    fault: PlannedFault
    partition: str
    missed: str | None
    outcome: str
    why: str | None
    attempts: int
    trainings: int
    lasted_seconds: float
    settled_seconds: float
    orphaned_seconds: float
    unattended_seconds: float
    violations: tuple[str, ...]

    @classmethod
    def of(
        cls,
        fault: PlannedFault,
        facts: BuildFacts,
        *,
        missed: str | None,
        lasted_seconds: float,
        settled_seconds: float,
    ) -> Self:
        """What the facts of its build say."""
        last = facts.attempts[-1] if facts.attempts else None
        return cls(
            fault=fault,
            partition=facts.partition,
            missed=missed,
            outcome=last.status if last else "",
            why=last.why if last else None,
            attempts=len(facts.attempts),
            trainings=len(facts.trainings),
            lasted_seconds=lasted_seconds,
            settled_seconds=settled_seconds,
            orphaned_seconds=facts.orphaned_seconds,
            unattended_seconds=facts.unattended_seconds,
            violations=tuple(violations(facts)),
        )

    def updated(self, facts: BuildFacts) -> Self:
        """The same, brought up to date; a violation stays one."""
        now = self.of(
            self.fault,
            facts,
            missed=self.missed,
            lasted_seconds=self.lasted_seconds,
            settled_seconds=self.settled_seconds,
        )
        return replace(now, violations=tuple(dict.fromkeys((*self.violations, *now.violations))))


def line(result: FaultResult) -> str:
    """One try, for people."""
    lasted = f", lasted {result.lasted_seconds:.0f} s" if result.lasted_seconds >= 1 else ""
    missed = f", missed: {result.missed}" if result.missed else ""
    broken = "".join(f"\n    VIOLATION: {violation}" for violation in result.violations)
    return (
        f"{result.fault}: build {result.partition} {result.outcome or 'not trained'}, {result.attempts} runs, "
        f"{result.trainings} trainings{lasted}, settled in {result.settled_seconds:.0f} s{missed}{broken}"
    )


def never_hit(results: Sequence[FaultResult]) -> list[PlannedFault]:
    """The faults that found nothing to harm, as often as they were tried."""
    hit = {result.fault for result in results if result.missed is None}
    return list(dict.fromkeys(result.fault for result in results if result.fault not in hit))


def show(console: Console, results: Sequence[FaultResult], *, seed: int, minutes: float) -> None:
    """Print the table, and everything that was not as it should be."""
    hits = sum(result.missed is None for result in results)
    table = Table(title=f"{hits} faults that hit in {minutes:.0f} minutes, seed {seed}; longest times in seconds")
    table.add_column("fault", no_wrap=True)
    for heading in (*PHASES, *OUTCOMES):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in FaultKind:
        if own := [result for result in results if result.fault.kind is kind]:
            table.add_row(str(kind), *_cells(own))
    table.add_section()
    table.add_row("all", *_cells(results), style="bold")
    console.print(table)
    for fault in never_hit(results):
        console.print(f"never hit: {fault}", markup=False)
    for result in results:
        if result.outcome == "FAILURE" and result.fault.kind is not FaultKind.TRAINING_FAILS:
            console.print(f"red: {result.fault}: {(result.why or '').partition(chr(10))[0]}", markup=False)
    for result in results:
        for violation in result.violations:
            console.print(f"VIOLATION {result.fault} (--replay {seed}/{result.fault.index}): {violation}", markup=False)


def summary(results: Sequence[FaultResult], *, seed: int, minutes: float) -> str:
    """The same as one line of JSON."""
    outcomes = Counter(result.outcome for result in results)
    return json.dumps(
        {
            "seed": seed,
            "faults": sum(result.missed is None for result in results),
            "missed": sum(result.missed is not None for result in results),
            "never_hit": len(never_hit(results)),
            "green": outcomes["SUCCESS"],
            "red": outcomes["FAILURE"],
            "cancelled": outcomes["CANCELED"],
            "trained_again": sum(result.trainings > 1 for result in results),
            "violations": [violation for result in results for violation in result.violations],
            "longest_orphaned_seconds": _longest(results, lambda result: result.orphaned_seconds),
            "longest_unattended_seconds": _longest(results, lambda result: result.unattended_seconds),
            "longest_settled_seconds": _longest(results, lambda result: result.settled_seconds),
            "minutes": round(minutes, 1),
        }
    )


def _cells(results: Sequence[FaultResult]) -> list[str]:
    phases = Counter(result.fault.phase for result in results if result.missed is None)
    outcomes = Counter(result.outcome for result in results)
    return [
        *(_count(phases[phase]) for phase in PHASES),
        _count(sum(result.missed is not None for result in results)),
        _count(outcomes["SUCCESS"]),
        _count(outcomes["FAILURE"]),
        _count(outcomes["CANCELED"]),
        _count(sum(result.attempts > 1 for result in results)),
        _count(sum(result.trainings > 1 for result in results)),
        f"{_longest(results, lambda result: result.orphaned_seconds):.0f}",
        f"{_longest(results, lambda result: result.unattended_seconds):.0f}",
        f"{_longest(results, lambda result: result.settled_seconds):.0f}",
        _count(sum(len(result.violations) for result in results)),
    ]


def _count(number: int) -> str:
    return str(number) if number else ""


def _longest(results: Sequence[FaultResult], seconds: Callable[[FaultResult], float]) -> float:
    return round(max(map(seconds, results), default=0.0), 1)
