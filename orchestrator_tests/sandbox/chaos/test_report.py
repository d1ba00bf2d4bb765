"""What a fault campaign tells in the end: what broke, how to do it again, and what found nothing to harm."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from orchestrator_sandbox.chaos.checks import BuildFacts, EndedAttempt
from orchestrator_sandbox.chaos.plan import FaultKind, PlannedFault
from orchestrator_sandbox.chaos.report import FaultResult, line, show, summary

DONE = PlannedFault(index=3, kind=FaultKind.SSH_CUT, phase="train", after=1.0, seconds=3.0, times=1)


def result_of(
    fault: PlannedFault,
    *,
    missed: str | None = None,
    trainings: int = 1,
    lasted_seconds: float = 0.0,
    violations: tuple[str, ...] = (),
) -> FaultResult:
    return FaultResult(
        fault=fault,
        partition="12",
        missed=missed,
        outcome="SUCCESS",
        why=None,
        attempts=1,
        trainings=trainings,
        lasted_seconds=lasted_seconds,
        settled_seconds=20.0,
        orphaned_seconds=0.0,
        unattended_seconds=0.0,
        violations=violations,
    )


def test_the_report_names_what_broke_and_how_to_do_it_again() -> None:
    result = result_of(DONE, trainings=2, violations=("build 12: two trainings at once",))
    console = Console(record=True, width=200, file=io.StringIO())
    show(console, [result], seed=7, minutes=2.0)
    text = console.export_text()
    assert "--replay 7/3" in text
    assert "two trainings at once" in text
    report = json.loads(summary([result], seed=7, minutes=2.0))
    assert report["violations"] == ["build 12: two trainings at once"]
    assert (report["faults"], report["green"], report["seed"], report["trained_again"]) == (1, 1, 7, 1)


def test_the_report_names_the_faults_that_never_hit() -> None:
    missed = result_of(DONE, missed="there is no instance")
    other = replace(DONE, index=4, kind=FaultKind.SSHD_AWAY)
    console = Console(record=True, width=200, file=io.StringIO())
    show(console, [missed, result_of(DONE), result_of(other, missed="it was over")], seed=7, minutes=2.0)
    assert [text for text in console.export_text().splitlines() if "never hit" in text] == [f"never hit: {other}"]


def test_an_outage_that_was_shortened_is_reported_with_both_lengths() -> None:
    fault = replace(DONE, kind=FaultKind.MLFLOW_DOWN, seconds=60.0)
    text = line(result_of(fault, lasted_seconds=21.4))
    assert "MLflow down in train for 60 s" in text
    assert "lasted 21 s" in text


def test_what_a_later_look_finds_is_added_to_what_was_wrong_before() -> None:
    before = result_of(DONE, violations=("build 12: it did not come to rest in time",))
    again = before.updated(
        BuildFacts(partition="12", attempts=(EndedAttempt("d1", "SUCCESS"), EndedAttempt("d2", "SUCCESS")))
    )
    assert again.violations[0] == "build 12: it did not come to rest in time"
    assert "build 12: 2 of its runs are green" in again.violations
    assert (again.attempts, again.settled_seconds) == (2, before.settled_seconds)
