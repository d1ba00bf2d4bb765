"""What counts is the exit status of the training's process, not what a script tells MLflow of itself."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.errors import BuildBusy, TrainingFailed
from orchestrator.resources.ec2.client import Ec2
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

PRAISES_ITSELF = '''#!{python} -ISu
"""As a script whose `with mlflow.start_run():` ends before its work does."""

import fcntl, json, os, sys, time, urllib.request

run = sys.argv[sys.argv.index("--run-id") + 1]
url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/update"
data = json.dumps(dict(run_id=run, status="FINISHED", end_time=time.time_ns() // 1000000)).encode()
urllib.request.urlopen(urllib.request.Request(url, data, {{"Content-Type": "application/json"}}), timeout=60)
print("says it is finished")
with open({gate!r}) as gate:
    fcntl.flock(gate, fcntl.LOCK_SH)
    sys.exit(gate.read() or 0)
'''


def praising_itself(world: World, gate: Gate) -> dict[str, str]:
    """A training that is FINISHED by its own account, and ends as is written at the gate, behind it."""
    return world.script("praises", PRAISES_ITSELF.format(python=sys.executable, gate=str(gate)))


def test_a_training_that_calls_itself_finished_is_followed_to_its_end_by_the_next_attempt(
    world: World, gate: Gate
) -> None:
    program = praising_itself(world, gate)
    dead = world.attempt(601, run=ThisRun("run-601a", live={"run-601b"}), settings=program)
    left = provisioned(dead)
    with ThreadPoolExecutor() as threads:
        frozen = threads.submit(dead.train)
        until(lambda: world.mlflow.run(left.mlflow_run).status == "FINISHED")
        retry = world.attempt(601, run=ThisRun("run-601b", root_run_id="run-601a"), settings=program)
        assert provisioned(retry).id == left.id
        gate.path.write_text("the export failed")
        gate.open()
        with pytest.raises(TrainingFailed, match="the export failed"):
            retry.train()
        with pytest.raises(TrainingFailed):
            frozen.result(60)
    assert world.mlflow.run(left.mlflow_run).status == "FAILED"
    assert gone(world, left.id)


def test_a_training_whose_exit_nobody_saw_is_not_taken_for_a_success(world: World, gate: Gate) -> None:
    gate.path.write_text("the export failed")
    gate.open()
    program = praising_itself(world, gate)
    dead = world.attempt(602, run=ThisRun("run-602a"), settings=program)
    left = provisioned(dead)
    with pytest.raises(TrainingFailed):
        dead.train()
    world.mlflow.finish(left.mlflow_run, "FINISHED")  # as it is when MLflow was away while it was closed as FAILED

    gate.path.write_text("")
    retry = world.attempt(602, run=ThisRun("run-602b", root_run_id="run-602a"), settings=program)
    trained = retry.train()
    assert trained != left.mlflow_run
    assert world.mlflow.run(left.mlflow_run).status == "KILLED"
    retry.terminate()
    assert retry.finished().run.id == trained
    retry.close()


def test_an_instance_that_goes_after_its_script_has_finished_itself_leaves_one_finished_run(
    world: World, gate: Gate
) -> None:
    taken: list[str] = []

    def take_it_away(_: str) -> None:
        if not taken:
            world.ec2_server.terminate_from_outside(first.id)
            taken.append(first.id)
            gate.open()

    program = praising_itself(world, gate)
    attempt = world.attempt(603, run=ThisRun("run-603"), settings=program, write=take_it_away)
    first = provisioned(attempt)
    trained = attempt.train()
    attempt.terminate()
    assert trained != first.mlflow_run
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    assert attempt.finished().run.id == trained
    attempt.close()


def test_an_attempt_that_wakes_up_late_leaves_its_successors_finished_run_as_it_is(world: World) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    frozen_run = ThisRun("run-605a")
    frozen = world.attempt(605, run=frozen_run, settings=program)
    left = provisioned(frozen)
    successor = world.attempt(605, run=ThisRun("run-605b", root_run_id="run-605a"), settings=program)
    assert successor.train() == left.mlflow_run
    successor.terminate()
    assert successor.finished().run.status == "FINISHED"

    frozen_run.over = True
    with pytest.raises(BuildBusy, match=r"run-605a is over by Dagster's books"):
        frozen.train()
    frozen.close()
    assert world.mlflow.run(left.mlflow_run).status == "FINISHED"


def test_a_cancel_while_what_was_trained_before_is_cleaned_up_does_not_undo_the_training(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = world.script("quick", "#!/bin/sh\nexit 0\n")
    trained = world.attempt(606, run=ThisRun("run-606a"), settings=program).train()  # and dies, with its instance there
    world.mlflow.finish(trained, "FINISHED")
    retry = world.attempt(606, run=ThisRun("run-606b", "run-606a", trained_before=trained), settings=program)
    assert retry.provision() is None
    terminate = Ec2.terminate

    def cancelled(ec2: Ec2, instance_id: str) -> str | None:
        monkeypatch.setattr(Ec2, "terminate", terminate)
        raise KeyboardInterrupt("cancelled")

    monkeypatch.setattr(Ec2, "terminate", cancelled)
    with pytest.raises(KeyboardInterrupt):
        retry.terminate()
    retry.close()
    assert world.ec2.find(pipeline="tiny", partition="606") is None
    assert world.mlflow.run(trained).status == "FINISHED"


def test_a_run_that_dagster_holds_for_over_launches_nothing(world: World) -> None:
    late = world.attempt(604, run=ThisRun("run-604", over=True))
    with pytest.raises(BuildBusy, match=r"run-604 is over by Dagster's books"):
        late.provision()
    late.close()
    assert world.ec2.find(pipeline="tiny", partition="604") is None
