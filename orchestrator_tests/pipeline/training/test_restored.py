"""Dagster's database was restored from a backup: what MLflow holds as trained is recorded again, and not trained."""

from __future__ import annotations

import pytest

from orchestrator import names
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned

pytestmark = pytest.mark.services  # a whole MLflow, and seconds each

QUICK = "#!/bin/sh\nexit 0\n"


def runs_of(world: World, number: int) -> list[str]:
    tags = {names.MlflowTag.PARTITION: str(number)}
    return [run.id for run in world.mlflow.find_runs(world.environment["MLFLOW_EXPERIMENT_ID"], tags=tags)]


def test_a_build_that_the_sensor_launches_again_is_recorded_from_mlflow(world: World) -> None:
    program = world.script("quick", QUICK)
    lost = world.attempt(901, run=ThisRun("run-901a", from_sensor=True), settings=program)
    trained = lost.train()
    lost.terminate()
    lost.finished()
    lost.close()

    run = ThisRun("run-901b", from_sensor=True)  # of another database: it knows nothing of the first
    restored = world.attempt(901, run=run, settings=program)
    assert restored.provision() is None
    assert restored.train() == trained
    assert restored.terminate() is None
    finished = restored.finished()
    assert (finished.run.id, finished.usage is not None) == (trained, True)
    assert runs_of(world, 901) == [trained]
    assert set(run.trainings) == {trained}  # kept, for whoever tries this run again
    restored.close()
    assert world.mlflow.run(trained).status == "FINISHED"


def test_a_run_that_was_under_way_in_the_backup_is_not_trained_again_by_its_retry(world: World) -> None:
    program = world.script("quick", QUICK)
    first = world.attempt(902, run=ThisRun("run-902a", from_sensor=True), settings=program)
    trained = first.train()
    first.terminate()
    first.finished()
    first.close()
    # The janitor has failed it, for its worker is gone; that it had trained stood in the lost tags.
    retry = world.attempt(902, run=ThisRun("run-902b", "run-902a"), settings=program)
    assert retry.provision() is None
    assert retry.finished().run.id == trained
    retry.close()


def test_whoever_launches_a_trained_build_by_hand_wants_it_trained(world: World) -> None:
    program = world.script("quick", QUICK)
    first = world.attempt(903, run=ThisRun("run-903a", from_sensor=True), settings=program)
    first.train()
    first.terminate()
    first.finished()
    first.close()
    again = world.attempt(903, run=ThisRun("run-903b"), settings=program)
    instance = provisioned(again)
    again.close()
    assert gone(world, instance.id)


def test_what_calls_itself_finished_or_failed_at_its_end_proves_nothing(world: World) -> None:
    program = world.script("quick", QUICK)
    lost = world.attempt(904, run=ThisRun("run-904a", from_sensor=True), settings=program)
    claimed = provisioned(lost).mlflow_run
    world.mlflow.finish(claimed, "FINISHED")  # as a script does it, whose process may still fail
    lost.close()

    failed = world.attempt(904, run=ThisRun("run-904b", from_sensor=True), settings=program)
    trained = failed.train()
    failed.terminate()
    failed.finished()
    failed.close()
    # Ended as FAILED by us, and then FINISHED by a process that lived on.
    world.mlflow.set_tags(trained, {names.MlflowTag.ENDED_AS: "FAILED"})
    restored = world.attempt(904, run=ThisRun("run-904c", from_sensor=True), settings=program)
    assert provisioned(restored).mlflow_run not in (claimed, trained)
    restored.close()
