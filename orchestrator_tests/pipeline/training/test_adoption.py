"""Only an instance that the Dagster run has named is taken over; one that has copied all tags gets nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import boto3
import pytest

from orchestrator.names import Ec2Tag
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.resources.ec2 import Ec2, Instance, fingerprint
from orchestrator.resources.ec2.tags import Owner
from orchestrator.resources.ec2.user_data import HostKey
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_tests.support import attempts
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned

pytestmark = pytest.mark.services

QUICK = "#!/bin/sh\nexit 0\n"


def newer(world: World, *, tags: Mapping[str, str]) -> Instance:
    """An instance of an attacker: launched later, with these tags on it."""
    later = datetime.now(UTC) + timedelta(hours=1)
    owner = Owner(pipeline="x", partition="y", dagster_run="z", mlflow_run="m", power_off_at=later)
    planted = world.ec2.launch(owner, attempt=f"attack-{datetime.now(UTC).timestamp()}")
    world.ec2.tag(planted.id, tags)
    return world.ec2.describe(planted.id)


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """To where connections were made."""
    made: list[str] = []

    def connect(settings: SshSettings, *, address: str, host_key: str | None) -> Ssh:
        made.append(address)
        return Ssh(settings, address=address, host_key=host_key)

    monkeypatch.setattr(attempts, "Ssh", connect)
    return made


@pytest.mark.parametrize(
    ("number", "with_own_key"), [(801, False), (802, True)], ids=["all tags copied", "but its own host key"]
)
def test_a_newer_instance_with_our_tags_gets_no_job(
    world: World, addresses: list[str], number: int, with_own_key: bool
) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(number, run=ThisRun(f"run-{number}a"), settings=program))
    tags = dict(left.tags)
    if with_own_key:
        del tags[Ec2Tag.HOST_KEY]
    planted = newer(world, tags=tags)
    assert world.ec2.find(pipeline="tiny", partition=str(number)) == planted, "by its tags, it is the newest of ours"

    retry = world.attempt(number, run=ThisRun(f"run-{number}b", f"run-{number}a"), settings=program)
    assert provisioned(retry).id == left.id
    assert retry.train() == left.mlflow_run
    assert addresses == [left.address]
    retry.terminate()
    retry.close()
    assert gone(world, left.id)
    assert gone(world, planted.id), "what says that it is left of our dead run is ended, as the janitor would"


def test_a_retry_of_a_run_whose_instance_is_gone_does_not_take_the_copy(world: World, addresses: list[str]) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(803, run=ThisRun("run-803a"), settings=program))
    planted = newer(world, tags=left.tags)
    world.ec2.terminate(left.id)
    retry = world.attempt(803, run=ThisRun("run-803b", "run-803a"), settings=program)
    fresh = provisioned(retry)
    assert fresh.id not in (left.id, planted.id)
    retry.train()
    assert addresses == [fresh.address]
    retry.close()


def test_a_host_key_that_was_changed_in_the_tag_of_our_own_instance_is_not_believed(world: World) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(804, run=ThisRun("run-804a"), settings=program))
    world.ec2.tag(left.id, {Ec2Tag.HOST_KEY: HostKey.generate().public})
    retry = world.attempt(804, run=ThisRun("run-804b", "run-804a"), settings=program)
    assert provisioned(retry).id != left.id
    assert gone(world, left.id)
    retry.close()


def test_a_host_key_that_is_changed_while_we_wait_for_the_instance_changes_nothing(world: World) -> None:
    program = world.script("adopted", QUICK)
    attempt = world.attempt(805, run=ThisRun("run-805"), settings=program)
    launched = provisioned(attempt)
    world.ec2.tag(launched.id, {Ec2Tag.HOST_KEY: HostKey.generate().public})
    assert attempt.train() == launched.mlflow_run
    attempt.terminate()
    attempt.close()


def test_an_mlflow_run_that_was_changed_in_the_tag_is_not_filled(world: World) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(806, run=ThisRun("run-806a"), settings=program))
    experiment = world.mlflow.run(left.mlflow_run).experiment_id
    forged = world.mlflow.create_run(experiment, name="tiny 806", tags=world.mlflow.run(left.mlflow_run).tags)
    world.ec2.tag(left.id, {Ec2Tag.MLFLOW_RUN: forged.id})
    retry = world.attempt(806, run=ThisRun("run-806b", "run-806a"), settings=program)
    assert provisioned(retry).mlflow_run != forged.id
    retry.close()
    world.mlflow.finish(forged.id, "KILLED")


def test_an_instance_of_ours_that_lost_its_tags_is_ended_by_the_retry(world: World) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(807, run=ThisRun("run-807a"), settings=program))
    tags = [{"Key": key} for key in left.tags if key.startswith("orchestrator:")]
    boto3.client("ec2").delete_tags(Resources=[left.id], Tags=tags)  # type: ignore[arg-type]
    retry = world.attempt(807, run=ThisRun("run-807b", "run-807a"), settings=program)
    assert provisioned(retry).id != left.id
    assert gone(world, left.id)
    retry.close()


def test_an_instance_that_a_list_of_aws_leaves_out_for_a_moment_is_taken_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = world.script("adopted", QUICK)
    left = provisioned(world.attempt(809, run=ThisRun("run-809a"), settings=program))
    retry = world.attempt(809, run=ThisRun("run-809b", "run-809a"), settings=program)
    with monkeypatch.context() as behind:
        behind.setattr(Ec2, "of_build", lambda *_, **__: [])
        assert provisioned(retry).id == left.id
    assert retry.train() == left.mlflow_run
    retry.terminate()
    retry.close()


def test_a_copy_is_no_reason_to_leave_our_own_instance_running(world: World) -> None:
    attempt = world.attempt(808, run=ThisRun("run-808", live={"run-other"}))
    launched = provisioned(attempt)
    planted = newer(world, tags={**launched.tags, Ec2Tag.DAGSTER_RUN: "run-other"})
    attempt.close()
    assert gone(world, launched.id)
    assert not gone(world, planted.id)
    world.ec2.terminate(planted.id)


def test_a_launch_is_read_back_from_tags_and_nothing_else_is() -> None:
    record = LaunchRecord(
        instance_id="i-1",
        host_key="SHA256:abc",
        mlflow_run="m-1",
        expires_at=datetime(2031, 5, 17, 8, 30, tzinfo=UTC),
        max_minutes=0.05,
    )
    assert LaunchRecord.from_tags(record.tags()) == record
    assert LaunchRecord.from_tags({**record.tags(), "orchestrator/max-minutes": "nan"}) is not None
    for key, value in {"orchestrator/max-minutes": "many", "orchestrator/expires-at": "soon"}.items():
        assert LaunchRecord.from_tags({**record.tags(), key: value}) is None
    assert LaunchRecord.from_tags({}) is None


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl comment"
    assert fingerprint(key) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
    for no_key in (None, "", "ssh-ed25519", "ssh-ed25519 ???"):
        assert fingerprint(no_key) == ""
