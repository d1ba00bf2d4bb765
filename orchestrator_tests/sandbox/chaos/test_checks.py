"""Each promise that the fault campaign checks can be seen to be kept, and to be broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator_sandbox.chaos.checks import BuildFacts, EndedAttempt, RecordedModel, violations
from orchestrator_sandbox.chaos.plan import FaultKind
from orchestrator_sandbox.chaos.training import STEPS, Training

TRAINED = Training(run="m1", instance="i-1", pid=7, began=100.0, seen=105.0, steps=tuple(range(STEPS)), status=0)
CUT_SHORT = Training("m0", "i-0", 6, began=90.0, seen=95.0, steps=(0, 1), status=None)
UNSEEN = replace(CUT_SHORT, status=0)
GREEN = BuildFacts(
    partition="12",
    attempts=(EndedAttempt("d1", "SUCCESS", trained="m1"),),
    mlflow_runs=(("m1", "FINISHED"),),
    records=(RecordedModel("d1", "m1"),),
    trainings=(TRAINED,),
)
RED = BuildFacts(
    partition="12",
    attempts=(EndedAttempt("d1", "FAILURE", why="the training exited with status 1"),),
    kind=FaultKind.TRAINING_FAILS,
    mlflow_runs=(("m1", "FAILED"),),
    trainings=(replace(TRAINED, status=1),),
)
CANCELLED = BuildFacts(
    partition="12",
    attempts=(EndedAttempt("d1", "CANCELED"),),
    kind=FaultKind.CANCELLED,
    mlflow_runs=(("m1", "KILLED"),),
)
ADOPTED = replace(
    GREEN,
    kind=FaultKind.WORKER_KILLED,
    attempts=(EndedAttempt("d0", "FAILURE", why="its worker died"), *GREEN.attempts),
)
LOST = replace(
    GREEN,
    kind=FaultKind.INSTANCE_TERMINATED,
    mlflow_runs=(("m0", "KILLED"), ("m1", "FINISHED")),
    trainings=(CUT_SHORT, TRAINED),
)

KEPT = {
    "trained": GREEN,
    "a training that fails is red": RED,
    "cancelled": CANCELLED,
    "cancelled when all was trained": replace(CANCELLED, trainings=(TRAINED,)),
    "a retry adopts": ADOPTED,
    "a lost instance is a new training": LOST,
    "nobody saw it exit 0 before its instance was lost": replace(LOST, trainings=(UNSEEN, TRAINED)),
    "recorded twice": replace(ADOPTED, records=(RecordedModel("d0", "m1"), RecordedModel("d1", "m1"))),
    "a worker's death is noticed in time": replace(ADOPTED, unattended_seconds=290.0),
}


@pytest.mark.parametrize("facts", KEPT.values(), ids=KEPT)
def test_a_build_that_ended_as_promised_breaks_nothing(facts: BuildFacts) -> None:
    assert violations(facts) == []


BROKEN = {
    "is alive without a live attempt": replace(RED, live_instances=("i-1",)),
    "a process is left": replace(GREEN, left_processes=("41 of i-1: python",)),
    "MLflow run m1 is RUNNING": replace(CANCELLED, mlflow_runs=(("m1", "RUNNING"),)),
    "had no live attempt for 200 s": replace(GREEN, orphaned_seconds=200.0),
    "no living process looked after something for 310 s": replace(ADOPTED, unattended_seconds=310.0),
    "it did not come to rest in time": replace(GREEN, settled=False),
    "it was never trained": BuildFacts(partition="12", attempts=()),
    "is still STARTED": replace(RED, attempts=(EndedAttempt("d1", "STARTED"),)),
    "does not say why": replace(RED, attempts=(EndedAttempt("d1", "FAILURE", why=" "),)),
    "is red, and its training did not fail: 'its worker died'": replace(
        RED, kind=FaultKind.WORKER_KILLED, attempts=(EndedAttempt("d1", "FAILURE", why="its worker died"),)
    ),
    "and nobody cancelled it": replace(CANCELLED, kind=FaultKind.DAEMON_KILLED),
    "2 of its runs are green": replace(GREEN, attempts=(EndedAttempt("d0", "SUCCESS"), EndedAttempt("d1", "SUCCESS"))),
    "green with 0 FINISHED": replace(GREEN, mlflow_runs=(("m1", "FAILED"),), records=()),
    "green with 2 FINISHED": replace(GREEN, mlflow_runs=(("m0", "FINISHED"), ("m1", "FINISHED"))),
    "['m9'] is recorded": replace(GREEN, records=(RecordedModel("d1", "m9"),)),
    "d1 is green and recorded nothing": replace(GREEN, records=(RecordedModel("d0", "m1"),)),
    "run d1 recorded 2 times": replace(GREEN, records=(RecordedModel("d1", "m1"), RecordedModel("d1", "m1"))),
    "no process of it exited 0": replace(GREEN, trainings=(replace(TRAINED, status=1),)),
    "is not green, and 2 MLflow runs": replace(CANCELLED, mlflow_runs=(("m0", "FINISHED"), ("m1", "FINISHED"))),
    "it is red, and run d1 recorded MLflow run m1": replace(RED, records=(RecordedModel("d1", "m1"),)),
    "exited 0, and the run is FAILED": replace(GREEN, mlflow_runs=(("m1", "FAILED"),)),
    "exited 0, and the run is KILLED": replace(
        LOST, attempts=(EndedAttempt("d1", "SUCCESS", trained="m0"),), trainings=(UNSEEN, TRAINED)
    ),
    "it was trained 2 times, and 0 of its instances were taken away": replace(LOST, kind=FaultKind.WORKER_KILLED),
    "it was trained 3 times, and 1 of its instances were taken away": replace(
        LOST, trainings=(replace(CUT_SHORT, run="m9", began=80.0, seen=85.0), CUT_SHORT, TRAINED)
    ),
    "exited 0, and the build was trained again": replace(
        LOST,
        attempts=(EndedAttempt("d0", "FAILURE", why="its worker died", trained="m0"), *GREEN.attempts),
        trainings=(UNSEEN, TRAINED),
    ),
    "two trainings at once": replace(LOST, trainings=(replace(CUT_SHORT, seen=101.0), TRAINED)),
    "was trained 2 times": replace(
        GREEN, trainings=(replace(TRAINED, instance="i-0", began=90.0, seen=95.0, steps=(0,), status=None), TRAINED)
    ),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_each_broken_promise_is_named(promise: str) -> None:
    assert [fault for fault in violations(BROKEN[promise]) if promise in fault], violations(BROKEN[promise])


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind is not FaultKind.INSTANCE_TERMINATED])
def test_only_the_loss_of_its_instance_lets_a_build_be_trained_again(kind: FaultKind) -> None:
    assert any("it was trained 2 times" in fault for fault in violations(replace(LOST, kind=kind)))
