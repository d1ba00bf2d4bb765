"""AWS has no instance now: the attempt waits in its place, says for what, and ends at once when it is cancelled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest

from orchestrator.errors import BuildBusy, CapacityUnavailable, QuotaUsedUp
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_sandbox.proxy import FaultyProxy, Request
from orchestrator_tests.support.attempts import ThisRun, World, gone, provisioned
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

NO_CAPACITY = AwsFault("InsufficientInstanceCapacity", status=500)
QUOTA = AwsFault("VcpuLimitExceeded", message="You have requested more vCPU capacity than your current vCPU limit of 5")
FOR_EVER = 10_000
NO_PATIENCE = {"CAPACITY_PATIENCE_MINUTES": "0.001"}


@pytest.fixture(autouse=True)
def quick(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pauses = replace(retry.CAPACITY, first_pause_seconds=0.01, longest_pause_seconds=0.05, look_seconds=0.01)
    monkeypatch.setattr(retry, "CAPACITY", pauses)
    yield
    world.ec2_server.faults.clear()


def launches(proxy: FaultyProxy) -> list[dict[str, list[str]]]:
    """What each RunInstances so far asked for."""
    bodies = [parse_qs(request.body.decode()) for request in list(proxy.seen)]
    return [body for body in bodies if body.get("Action") == ["RunInstances"]]


@pytest.mark.parametrize(
    "fault",
    [NO_CAPACITY, QUOTA, AwsFault("MaxSpotInstanceCountExceeded"), AwsFault("InsufficientFreeAddressesInSubnet")],
    ids=lambda fault: fault.code,
)
def test_no_capacity_is_waited_for_in_rounds_over_all_options(
    world: World, aws_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: AwsFault
) -> None:
    deadlines: list[Any] = []
    launch = Ec2.launch

    def noted(self: Ec2, owner: Any, **options: Any) -> Any:
        deadlines.append(owner.power_off_at)
        return launch(self, owner, **options)

    monkeypatch.setattr(Ec2, "launch", noted)
    world.ec2_server.faults.answer("RunInstances", fault, times=5)
    attempt = world.attempt(301, run=ThisRun("run-301"), settings={"INSTANCE_TYPE": "t3.medium,t3.large"})
    instance = provisioned(attempt)
    asked = launches(aws_proxy)
    assert [request["InstanceType"][0] for request in asked] == ["t3.medium", "t3.large"] * 3
    assert len({request["ClientToken"][0] for request in asked}) == 6, "a token belongs to one request"
    assert len(deadlines) == 3
    assert deadlines == sorted(set(deadlines)), "the time of the wait is not taken from the training"
    assert instance.power_off_at == deadlines[-1].replace(microsecond=0)
    attempt.close()


def test_a_quota_is_waited_for_until_an_instance_of_ours_ends(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="orchestrator")
    other = world.attempt(302, run=ThisRun("run-302"))
    first = provisioned(other)
    world.ec2_server.faults.answer("RunInstances", QUOTA, times=FOR_EVER)
    attempt = world.attempt(303, run=ThisRun("run-303"), settings=NO_PATIENCE)

    def waits() -> int:
        return sum(first.id in line for line in caplog.messages if line.startswith("Waiting for quota: t3.medium"))

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(provisioned, attempt)
        until(lambda: waits() >= 5 or waiting.done())
        assert not waiting.done(), "its own patience is over, and the place in the queue is kept"
        world.ec2_server.faults.clear()
        other.close()
        second = waiting.result(120)
    assert second.id != first.id
    refusals = [line for line in caplog.messages if line.startswith("No capacity, looking for")]
    assert len(refusals) == 1, "AWS's own words are told once"
    attempt.close()


def test_other_types_of_ours_do_not_prolong_the_wait_for_a_quota(world: World) -> None:
    other = world.attempt(304, run=ThisRun("run-304"))
    provisioned(other)
    world.ec2_server.faults.answer("RunInstances", QUOTA, times=FOR_EVER)
    settings = {**NO_PATIENCE, "INSTANCE_TYPE": "g5.xlarge"}
    with pytest.raises(QuotaUsedUp, match="VcpuLimitExceeded"):
        world.attempt(305, run=ThisRun("run-305"), settings=settings).provision()
    other.close()


@pytest.mark.parametrize(
    ("minutes", "words"), [("0.001", "waited 0.001 min .*CAPACITY_PATIENCE"), ("0", "INSTANCE_TYPE")]
)
def test_the_patience_has_an_end(world: World, aws_proxy: FaultyProxy, minutes: str, words: str) -> None:
    world.ec2_server.faults.answer("RunInstances", NO_CAPACITY, times=FOR_EVER)
    attempt = world.attempt(306, run=ThisRun("run-306"), settings={"CAPACITY_PATIENCE_MINUTES": minutes})
    with pytest.raises(CapacityUnavailable, match=words):
        attempt.provision()
    assert (len(launches(aws_proxy)) == 1) is (minutes == "0")
    attempt.close()


def test_a_cancel_ends_the_wait_at_once_and_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = replace(retry.CAPACITY, first_pause_seconds=3600, longest_pause_seconds=3600, jitter=False)
    monkeypatch.setattr(retry, "CAPACITY", hours)
    mlflow_runs: list[str] = []
    launch = Ec2.launch

    def cancel_soon(self: Ec2, owner: Any, **options: Any) -> Any:
        mlflow_runs.append(owner.mlflow_run)
        signal.setitimer(signal.ITIMER_REAL, 1)
        return launch(self, owner, **options)

    monkeypatch.setattr(Ec2, "launch", cancel_soon)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # SIGINT is ignored below nohup
    world.ec2_server.faults.answer("RunInstances", NO_CAPACITY, times=FOR_EVER)
    attempt = world.attempt(307, run=ThisRun("run-307"))
    try:
        with pytest.raises(KeyboardInterrupt):
            attempt.provision()
    finally:
        signal.signal(signal.SIGALRM, before)
    attempt.close()
    assert world.mlflow.run(mlflow_runs[0]).status == "KILLED"
    assert world.ec2.find(pipeline="tiny", partition="307") is None


def test_a_run_that_dagster_has_ended_meanwhile_launches_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ThisRun("run-308")
    launch = Ec2.launch

    def ended(self: Ec2, owner: Any, **options: Any) -> Any:
        run.over = True
        return launch(self, owner, **options)

    monkeypatch.setattr(Ec2, "launch", ended)
    world.ec2_server.faults.answer("RunInstances", NO_CAPACITY)
    attempt = world.attempt(308, run=run)
    with pytest.raises(BuildBusy, match="launches nothing"):
        attempt.provision()
    attempt.close()
    assert world.ec2.find(pipeline="tiny", partition="308") is None


def test_a_capacity_that_is_gone_after_the_launch_is_waited_for_too(world: World, aws_proxy: FaultyProxy) -> None:
    before = set(world.ec2_server.instance_ids())
    taken: list[str] = []

    def take_it_away(request: Request) -> bool:
        if not taken and b"Action=DescribeInstances" in request.body and b"InstanceId.1=" in request.body:
            taken.extend(set(world.ec2_server.instance_ids()) - before)
            for new in taken:
                world.ec2_server.terminate_from_outside(new, code="Server.InsufficientInstanceCapacity")
        return False

    attempt = world.attempt(309, run=ThisRun("run-309"), settings={"INSTANCE_LOSSES": "0"})
    with aws_proxy.held(take_it_away):
        ready = provisioned(attempt)
    assert ready.id not in taken
    assert [gone(world, former) for former in taken] == [True]
    attempt.close()
