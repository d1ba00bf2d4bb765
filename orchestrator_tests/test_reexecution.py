"""A re-execution may begin at any step, whatever is left of the instance and of the MLflow run."""

from __future__ import annotations

import pytest
import requests

from orchestrator.errors import BuildBusy, MlflowNotFound
from orchestrator.pipeline.attempt import Attempt
from orchestrator_tests.attempts import ThisRun, World
from orchestrator_tests.test_attempt import gone, provisioned

pytestmark = pytest.mark.services

QUICK = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def quick(world: World) -> dict[str, str]:
    return world.script("quick", QUICK)


def again(world: World, number: int, settings: dict[str, str], *, trained: str | None = None) -> Attempt:
    """The attempt of a run that re-executes run `<number>a`, which is over."""
    return world.attempt(number, run=ThisRun(f"{number}b", f"{number}a", trained_before=trained), settings=settings)


def delete(world: World, mlflow_run: str) -> None:
    url = f"{world.mlflow_server.url}/api/2.0/mlflow/runs/delete"
    requests.post(url, json={"run_id": mlflow_run}, timeout=30).raise_for_status()


def test_begun_at_train_it_uses_the_instance_that_is_still_there(world: World, quick: dict[str, str]) -> None:
    left = provisioned(world.attempt(301, run=ThisRun("301a"), settings=quick))
    attempt = again(world, 301, quick)
    assert attempt.train() == left.mlflow_run
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id == left.id
    assert attempt.finished().run.status == "FINISHED"
    attempt.close()


def test_begun_at_train_it_launches_an_instance_when_the_one_of_then_is_gone(
    world: World, quick: dict[str, str]
) -> None:
    left = provisioned(world.attempt(302, run=ThisRun("302a"), settings=quick))
    world.ec2.terminate(left.id)
    attempt = again(world, 302, quick)
    trained = attempt.train()
    assert trained != left.mlflow_run
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id != left.id
    assert attempt.finished().run.id == trained
    attempt.close()


def test_begun_at_train_it_leaves_an_instance_whose_mlflow_run_was_deleted(world: World, quick: dict[str, str]) -> None:
    left = provisioned(world.attempt(303, run=ThisRun("303a"), settings=quick))
    delete(world, left.mlflow_run)
    attempt = again(world, 303, quick)
    assert attempt.train() != left.mlflow_run
    assert gone(world, left.id)
    attempt.terminate()
    attempt.close()


def test_begun_at_terminate_it_ends_the_instance_that_is_still_there_and_then_records(
    world: World, quick: dict[str, str]
) -> None:
    trained = world.attempt(304, run=ThisRun("304a"), settings=quick).train()
    attempt = again(world, 304, quick, trained=trained)
    usage = attempt.terminate()
    assert usage is not None
    assert gone(world, usage.instance_id)
    finished = attempt.finished()
    assert finished.run.id == trained
    assert finished.usage is not None
    assert finished.usage.instance_id == usage.instance_id
    attempt.close()

    # The instance is gone now, and the run FINISHED.
    after = again(world, 304, quick, trained=trained)
    assert after.terminate() is None
    assert after.finished().usage == finished.usage
    after.close()

    # With its MLflow run deleted, there is nothing to record, but a model can be trained again.
    delete(world, trained)
    late = again(world, 304, quick, trained=trained)
    with pytest.raises(MlflowNotFound, match=rf"{trained}.*is deleted: restore it"):
        late.finished()
    late.close()
    anew = again(world, 304, quick, trained=trained)
    assert anew.train() != trained
    anew.terminate()
    assert anew.finished().run.status == "FINISHED"
    anew.close()


def test_begun_at_terminate_it_leaves_the_instance_of_a_live_run_alone(world: World, quick: dict[str, str]) -> None:
    live = world.attempt(305, run=ThisRun("305x"), settings=quick)
    used = provisioned(live)
    late = world.attempt(305, run=ThisRun("305b", "305a", live={"305x"}), settings=quick)
    with pytest.raises(BuildBusy, match="305x"):
        late.terminate()
    late.close()
    assert world.ec2.describe(used.id).alive
    live.close()


def test_what_is_recorded_when_the_tag_of_the_dead_run_was_lost_is_the_finished_run_of_the_build(
    world: World, quick: dict[str, str]
) -> None:
    first = world.attempt(306, run=ThisRun("306a"), settings=quick)
    trained = first.train()
    first.terminate()
    first.finished()
    first.close()
    attempt = again(world, 306, quick)
    assert attempt.terminate() is None
    assert attempt.finished().run.id == trained
    attempt.close()
