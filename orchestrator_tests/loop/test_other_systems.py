"""The same project against systems that are not the sandbox's: OpenSSH, another Jenkins, another MLflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator_tests.support.other_world import MODEL, STEPS, OtherWorld, partition_of
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

CANCEL_SECONDS = 120
RECOVERY_SECONDS = 420


@pytest.fixture(scope="module")
def world() -> Iterator[OtherWorld]:
    with OtherWorld() as world:
        commit = world.commit()
        world.jenkins.build("main", commit)
        world.jenkins.build("feature/speed", commit)
        world.jenkins.build("main", commit, result="FAILURE")
        world.start_dagster()
        yield world


def test_the_newest_green_build_becomes_a_model(world: OtherWorld) -> None:
    partition = "feature/speed#1"
    run_id = world.launched(partition)
    assert world.ended(run_id).status == "SUCCESS", world.dagster.failure(run_id)

    (mlflow_run,) = world.mlflow_runs(partition)
    tags = {tag["key"]: tag["value"] for tag in mlflow_run["data"]["tags"]}
    (instance,) = world.ec2.instances(partition)
    assert mlflow_run["info"]["status"] == "FINISHED"
    assert tags["dagster_run_id"] == run_id
    assert (tags["jenkins.job"], tags["jenkins.build"]) == ("team/shop/feature%2Fspeed", "1")
    assert tags["ec2.instance_id"] == instance["InstanceId"]
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.repoURL"] == world.repository
    assert world.steps(mlflow_run) == list(range(STEPS))
    assert world.instance_states(partition) == ["terminated"]

    (model,) = world.dagster.materialisations(MODEL, partition=partition)
    assert model.run_id == run_id
    assert mlflow_run["info"]["run_id"] in model.metadata.values()
    assert any(value == str(1 / STEPS) for value in model.metadata.values())
    assert set(world.dagster.partitions(MODEL)) == {"main#1", "feature/speed#1"}
    assert len(world.dagster.runs()) == 1


def test_a_build_that_ends_late_is_trained_and_a_cancel_gives_its_instance_back(world: OtherWorld) -> None:
    gate = world.gate()
    build = world.jenkins.build("main", world.commit(gate=gate), result=None)
    newer = world.jenkins.build("main", build.commit, result="ABORTED")
    build.result = "SUCCESS"
    partition = partition_of(build)
    run_id = world.launched(partition)
    world.training(partition)
    world.dagster.cancel(run_id)
    assert world.ended(run_id, seconds=CANCEL_SECONDS).status == "CANCELED"
    assert world.instance_states(partition) == ["terminated"]
    assert [run["info"]["status"] for run in world.mlflow_runs(partition)] == ["KILLED"]
    assert world.dagster.materialisations(MODEL, partition=partition) == []
    assert world.dagster.runs(partition=partition_of(newer)) == []


def test_a_killed_sshd_session_changes_nothing_but_a_log_line(world: OtherWorld) -> None:
    partition, gate = world.gated_build()
    run_id = world.launched(partition)
    mlflow_run_id = world.training(partition)
    sessions = until(world.machine(partition).sessions)
    for session in sessions:
        session.kill()
    world.hears(run_id, "Connected again")
    gate.open()
    assert world.ended(run_id).status == "SUCCESS", world.dagster.failure(run_id)
    (mlflow_run,) = world.mlflow_runs(partition)
    assert (mlflow_run["info"]["run_id"], mlflow_run["info"]["status"]) == (mlflow_run_id, "FINISHED")
    assert world.steps(mlflow_run) == list(range(STEPS))
    assert world.instance_states(partition) == ["terminated"]


def test_a_machine_with_another_host_key_gets_nothing_and_is_terminated(world: OtherWorld) -> None:
    build = world.jenkins.build("feature/speed", world.commit(), result=None)
    partition = partition_of(build)
    world.ec2.impostors.add(partition)
    build.result = "SUCCESS"
    run_id = world.launched(partition)
    assert world.ended(run_id, seconds=300).status == "FAILURE"  # it gets two minutes to show the right key
    failure = world.dagster.failure(run_id) or ""
    assert "it is not the machine that was launched" in failure
    assert world.instance_states(partition) == ["terminated"]
    assert [run["info"]["status"] for run in world.mlflow_runs(partition)] == ["FAILED"]


@pytest.mark.parametrize("killed", ["run worker", "code server and run worker"])
def test_after_a_kill_the_retry_adopts_instance_and_training(world: OtherWorld, killed: str) -> None:
    partition, gate = world.gated_build()
    first = world.launched(partition)
    mlflow_run_id = world.training(partition)
    worker = world.worker(first)
    code_server = worker.parent()
    assert code_server is not None
    if "code server" in killed:
        code_server.kill()  # it would tell Dagster at once; now the expired lease alone tells
    worker.kill()

    def retried() -> str | None:
        return next((run.id for run in world.dagster.runs(partition=partition) if run.id != first), None)

    retry = until(retried, seconds=RECOVERY_SECONDS, every=1) or ""
    world.hears(retry, "under way already")
    gate.open()
    assert world.ended(retry).status == "SUCCESS", world.dagster.failure(retry)
    assert world.dagster.run(first).status == "FAILURE"
    (mlflow_run,) = world.mlflow_runs(partition)
    assert (mlflow_run["info"]["run_id"], mlflow_run["info"]["status"]) == (mlflow_run_id, "FINISHED")
    assert world.steps(mlflow_run) == list(range(STEPS))
    assert world.instance_states(partition) == ["terminated"]
    (model,) = world.dagster.materialisations(MODEL, partition=partition)
    assert model.run_id == retry
    assert mlflow_run_id in model.metadata.values()
