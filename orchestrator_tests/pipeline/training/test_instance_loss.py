"""An instance that is taken away in any phase is noticed, and the training begins anew on another, up to a limit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest

from orchestrator.errors import InstanceLost, LaunchRefused
from orchestrator.pipeline.training import on_instance
from orchestrator.remote import RemoteTraining
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Instance
from orchestrator.resources.ssh import Ssh, channel
from orchestrator.settings.groups import SshSettings
from orchestrator_sandbox.proxy import FaultyProxy, Request
from orchestrator_tests.support import attempts
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.follower import Follower
from orchestrator_tests.support.silent_relay import SilentRelay
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

ENDLESS = "#!/bin/sh\necho begun\nexec sleep 600\n"
QUICK = "#!/bin/sh\nexit 0\n"


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentRelay]:
    with SilentRelay() as relay:
        monkeypatch.setattr(attempts, "Ssh", relay.ssh)
        quick = replace(retry.REMOTE_FOLLOWING, answer_seconds=3)
        monkeypatch.setattr(on_instance, "RemoteTraining", functools.partial(RemoteTraining, following=quick))
        yield relay


def test_by_the_table_a_loss_is_seen_within_30_seconds_in_every_phase() -> None:
    last_try = retry.SSH.last_attempt_seconds
    polling = channel.POLL_MS / 1000
    # An AWS that is asked and takes longer is away, and then nobody can say whether the instance is lost.
    asked = retry.EC2_ONE_TRY.connect_seconds + retry.EC2_ONE_TRY.answer_seconds
    calls, following = retry.REMOTE_CALLS, retry.REMOTE_FOLLOWING
    phases = {
        # At worst it ends just after a look, before the question for its status checks.
        "wait until ready": asked + retry.EC2.longest_pause_seconds,
        "connect": retry.SSH.total_seconds + last_try,
        "start": calls.answer_seconds + polling,
        "connect again in start": calls.connect_seconds + last_try,
        "follow": following.answer_seconds + polling,
        "connect again in follow": following.connect_seconds + last_try + following.longest_pause_seconds,
    }
    assert {phase: seconds + asked for phase, seconds in phases.items() if seconds + asked > 30} == {}


def test_an_instance_that_ends_before_it_is_ready_is_replaced(world: World, aws_proxy: FaultyProxy) -> None:
    taken: list[Instance] = []

    def take_it_away(request: Request) -> bool:
        looks = b"Action=DescribeInstances" in request.body and b"InstanceId.1=" in request.body
        if looks and not taken and (found := world.ec2.find(pipeline="tiny", partition="107")):
            taken.append(found)
            world.ec2_server.terminate_from_outside(found.id)
        return False

    attempt = world.attempt(107, run=ThisRun("run-107"), settings=world.script("quick", QUICK))
    with aws_proxy.held(take_it_away):
        ready = provisioned(attempt)
    [first] = taken
    assert ready.id != first.id
    assert ready.mlflow_run != first.mlflow_run
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    assert gone(world, first.id)
    attempt.close()


def test_a_launch_that_aws_cannot_start_for_our_own_settings_is_not_repeated(
    world: World, aws_proxy: FaultyProxy
) -> None:
    before = set(world.ec2_server.instance_ids())

    def refuse_the_key(request: Request) -> bool:
        if b"Action=DescribeInstances" in request.body and b"InstanceId.1=" in request.body:
            for new in set(world.ec2_server.instance_ids()) - before:
                world.ec2_server.terminate_from_outside(new, code="Client.InternalError")
        return False

    attempt = world.attempt(117, run=ThisRun("run-117"), settings=world.script("quick", QUICK))
    with aws_proxy.held(refuse_the_key), pytest.raises(LaunchRefused, match="KMS"):
        attempt.provision()
    attempt.close()
    [instance_id] = set(world.ec2_server.instance_ids()) - before
    assert gone(world, instance_id)


def test_an_instance_that_ends_while_its_traffic_is_swallowed_is_noticed_and_the_training_begins_anew(
    world: World, relay: SilentRelay, tmp_path: Path
) -> None:
    program = world.script("second", f"#!/bin/sh\necho begun\n[ -e {tmp_path}/again ] || exec sleep 600\n")

    def take_it_away(_: str) -> None:
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            relay.fall_silent(first.address)
            world.ec2_server.terminate_from_outside(first.id)

    attempt = world.attempt(101, run=ThisRun("run-101"), settings=program, write=take_it_away)
    first = provisioned(attempt)
    trained = attempt.train()
    usage = attempt.terminate()
    assert usage is not None
    assert usage.instance_id != first.id
    assert gone(world, usage.instance_id)
    assert trained != first.mlflow_run
    assert world.mlflow.run(first.mlflow_run).status == "KILLED"
    attempt.close()


def test_an_instance_that_falls_silent_and_ends_before_the_login_is_replaced(world: World, relay: SilentRelay) -> None:
    relay.policy = replace(retry.SSH, total_seconds=0.5)
    attempt = world.attempt(103, run=ThisRun("run-103"), settings=world.script("quick", QUICK))
    first = provisioned(attempt)
    relay.fall_silent(first.address)
    world.ec2_server.terminate_from_outside(first.id)
    assert attempt.train() != first.mlflow_run
    attempt.terminate()
    attempt.close()


def test_a_loss_while_the_training_is_started_is_noticed_after_one_try(host: SshHost, follower: Follower) -> None:
    impatient = RemoteTraining(follower.ssh, follower.run_id, calls=replace(retry.REMOTE_CALLS, answer_seconds=0.5))
    follower.ssh.connect(deadline_seconds=5)

    def check() -> None:
        follower.check()
        raise InstanceLost("it was terminated")

    host.swallow()
    try:
        with pytest.raises(InstanceLost):
            impatient.start(["true"], environment={}, deadline=datetime.now(UTC), check=check)
    finally:
        host.swallow(False)
    assert follower.checks == 1


def test_an_address_that_has_another_owner_means_that_the_instance_was_lost(
    world: World, host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = world.attempt(104, run=ThisRun("run-104"), settings=world.script("quick", QUICK))
    first = provisioned(attempt)
    world.ec2_server.terminate_from_outside(first.id)

    def connect(settings: SshSettings, *, address: str, host_key: str | None) -> Ssh:
        if address == first.address:
            return Ssh(host.settings(), address="127.0.0.1", host_key=host_key)
        return Ssh(settings, address=address, host_key=host_key)

    monkeypatch.setattr(attempts, "Ssh", connect)
    assert attempt.train() != first.mlflow_run
    attempt.terminate()
    attempt.close()


def test_an_instance_that_somebody_stops_is_replaced_and_terminated(world: World, tmp_path: Path) -> None:
    program = world.script("fourth", f"#!/bin/sh\necho begun\n[ -e {tmp_path}/again ] || exec sleep 600\n")

    def stop_it(_: str) -> None:
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            boto3.client("ec2").stop_instances(InstanceIds=[first.id])

    attempt = world.attempt(105, run=ThisRun("run-105"), settings=program, write=stop_it)
    first = provisioned(attempt)
    assert attempt.train() != first.mlflow_run
    until(lambda: world.ec2.describe(first.id).state == "terminated")
    attempt.terminate()
    attempt.close()


REBOOT = """#!/bin/sh
cd "$ORCHESTRATOR_TRAINING" && set -- $(readlink pid) && rm pid
ln -s "$1 another-boot $3" pid
kill -9 "$1"
exec sleep 600
"""


def test_an_instance_that_reboots_is_replaced_and_terminated(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    once = f"#!/bin/sh\n[ -e {tmp_path}/again ] && exit 0\ntouch {tmp_path}/again\n"
    attempt = world.attempt(108, run=ThisRun("run-108"), settings=world.script("reboots", once + REBOOT))
    first = provisioned(attempt)
    assert attempt.train() != first.mlflow_run
    until(lambda: world.ec2.describe(first.id).state == "terminated")
    assert f"Beginning anew on another instance: instance {first.id} rebooted under the training" in caplog.text
    attempt.terminate()
    attempt.close()


def test_an_instance_that_reboots_again_and_again_makes_the_run_red(world: World) -> None:
    settings = {**world.script("rebooting", REBOOT), "INSTANCE_LOSSES": "1"}
    attempt = world.attempt(109, run=ThisRun("run-109"), settings=settings)
    with pytest.raises(InstanceLost, match=r"instance i-\w+ rebooted under the training"):
        attempt.train()
    attempt.close()


def test_spot_instances_that_aws_takes_back_too_often_make_the_run_red_with_aws_reason(world: World) -> None:
    taken: list[str] = []

    def take_it_away(_: str) -> None:
        found = world.ec2.find(pipeline="tiny", partition="106")
        if found is not None and found.id not in taken:
            assert found.market == "spot"
            taken.append(found.id)
            world.ec2_server.terminate_from_outside(found.id)

    attempt = world.attempt(
        106,
        run=ThisRun("run-106"),
        settings={**world.script("endless", ENDLESS), "INSTANCE_MARKET": "spot,on-demand", "INSTANCE_LOSSES": "1"},
        write=take_it_away,
    )
    with pytest.raises(InstanceLost, match=r"AWS took the spot instance back \(Server\.SpotInstanceTermination\)"):
        attempt.train()
    assert len(taken) == 2
    runs = [world.mlflow.run(world.ec2.describe(instance).mlflow_run) for instance in taken]
    assert [run.status for run in runs] == ["KILLED", "FAILED"]
    assert all("AWS took the spot instance back" in run.tags["orchestrator.reason"] for run in runs)
    assert world.ec2.find(pipeline="tiny", partition="106") is None
    attempt.close()
