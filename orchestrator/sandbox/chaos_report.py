"""What a fault campaign tells in the end: a table for people, and one JSON object for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from orchestrator.sandbox.chaos_plan import PHASES, Fault, Kind

OUTCOMES = ("missed", "green", "red", "cancelled", "retried", "orphaned", "unattended", "settled", "violations")
WIDTH = 185
"""Of the table, in characters, where no terminal says otherwise."""


@dataclass(frozen=True)
class Result:
    """What became of one fault.

    Attributes:
        partition: the build that it was meant for.
        missed: why it harmed nothing; None when it did.
        outcome: status of the build's last run; "" when there is none.
        why: why that run is red.
        attempts: Dagster runs that the build took.
        trainings: training processes that the build took.
        settled_seconds: from the fault until nothing was under way or left.
        orphaned_seconds: the longest time that something had no live attempt, as Dagster knows them.
        unattended_seconds: the longest time that no living process looked after it, from the fault on.
        violations: the promises that were broken.
    """

    fault: Fault
    partition: str
    missed: str | None
    outcome: str
    why: str | None
    attempts: int
    trainings: int
    settled_seconds: float
    orphaned_seconds: float
    unattended_seconds: float
    violations: tuple[str, ...]


def show(console: Console, results: Sequence[Result], *, seed: int, minutes: float) -> None:
    """Print the table, and everything that was not as it should be."""
    hits = sum(result.missed is None for result in results)
    table = Table(title=f"{hits} faults that hit in {minutes:.0f} minutes, seed {seed}; longest times in seconds")
    table.add_column("fault", no_wrap=True)
    for heading in (*PHASES, *OUTCOMES):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in Kind:
        if own := [result for result in results if result.fault.kind is kind]:
            table.add_row(str(kind), *_cells(own))
    table.add_section()
    table.add_row("all", *_cells(results), style="bold")
    console.print(table)
    for result in results:
        if result.outcome == "FAILURE" and result.fault.kind is not Kind.TRAINING_FAILS:
            console.print(f"red: {result.fault}: {(result.why or '').partition(chr(10))[0]}", markup=False)
    for result in results:
        for violation in result.violations:
            console.print(f"VIOLATION {result.fault} (--replay {seed}/{result.fault.index}): {violation}", markup=False)


def summary(results: Sequence[Result], *, seed: int, minutes: float) -> str:
    """The same as one line of JSON."""
    outcomes = Counter(result.outcome for result in results)
    return json.dumps(
        {
            "seed": seed,
            "faults": sum(result.missed is None for result in results),
            "missed": sum(result.missed is not None for result in results),
            "green": outcomes["SUCCESS"],
            "red": outcomes["FAILURE"],
            "cancelled": outcomes["CANCELED"],
            "violations": [violation for result in results for violation in result.violations],
            "longest_orphaned_seconds": _longest(results, lambda result: result.orphaned_seconds),
            "longest_unattended_seconds": _longest(results, lambda result: result.unattended_seconds),
            "longest_settled_seconds": _longest(results, lambda result: result.settled_seconds),
            "minutes": round(minutes, 1),
        }
    )


def _cells(results: Sequence[Result]) -> list[str]:
    phases = Counter(result.fault.phase for result in results if result.missed is None)
    outcomes = Counter(result.outcome for result in results)
    return [
        *(_count(phases[phase]) for phase in PHASES),
        _count(sum(result.missed is not None for result in results)),
        _count(outcomes["SUCCESS"]),
        _count(outcomes["FAILURE"]),
        _count(outcomes["CANCELED"]),
        _count(sum(result.attempts > 1 for result in results)),
        f"{_longest(results, lambda result: result.orphaned_seconds):.0f}",
        f"{_longest(results, lambda result: result.unattended_seconds):.0f}",
        f"{_longest(results, lambda result: result.settled_seconds):.0f}",
        _count(sum(len(result.violations) for result in results)),
    ]


def _count(number: int) -> str:
    return str(number) if number else ""


def _longest(results: Sequence[Result], seconds: Callable[[Result], float]) -> float:
    return round(max(map(seconds, results), default=0.0), 1)
