from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.errors import Ec2Error, InstanceLost, LaunchRefused
from orchestrator.resources.ec2.client import Ec2
from orchestrator.resources.retry import Ec2Policy
from orchestrator_tests.support.ec2_account import (
    IMPATIENT,
    QUICK,
    Account,
    aws_error,
    events,
    inject,
    open_account,
    owner,
)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with open_account(monkeypatch) as account:
        yield account


def rewrite(ec2: Ec2, operation: str, *edits: dict[str, Any]) -> None:
    """Change what AWS answers to the next calls: one dict of fields each; the last one stays."""
    waiting = list(edits)

    def edit(parsed: dict[str, Any], **_: object) -> None:
        fields = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        for group in parsed.get("Reservations", []):
            for instance in group["Instances"]:
                instance.update(fields)
        for status in parsed.get("InstanceStatuses", []):
            status.update(fields)

    events(ec2).register(f"after-call.ec2.{operation}", edit)


PENDING = {"State": {"Code": 0, "Name": "pending"}}
INITIALIZING = {"InstanceStatus": {"Status": "initializing"}, "SystemStatus": {"Status": "initializing"}}
HALF = {"InstanceStatus": {"Status": "initializing"}, "SystemStatus": {"Status": "ok"}}


def test_an_instance_is_ready_when_it_runs_and_both_checks_passed(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator.resources.ec2")
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", PENDING, PENDING, {})
    rewrite(ec2, "DescribeInstanceStatus", INITIALIZING, INITIALIZING, HALF, {})
    ready = ec2.wait_until_ready(instance)
    assert ready.state == "running"
    assert ready.address
    assert caplog.messages == [
        f"Waiting for instance {instance.id} (pending): it does not run yet",
        f"Waiting for instance {instance.id} (running): 0/2 status checks",
        f"Waiting for instance {instance.id} (running): 1/2 status checks",
        f"Instance is ready: {instance.id} at {ready.address}",
    ]


def test_with_ready_when_ssh_no_check_is_waited_for(account: Account) -> None:
    ec2 = account.ec2(ready_when="ssh")
    ec2.wait_until_ready(ec2.launch(owner(), attempt="run-1"))
    assert account.asked("DescribeInstanceStatus") == []


@pytest.mark.parametrize(
    ("wanted", "address"), [("auto", "203.0.113.7"), ("public", "203.0.113.7"), ("private", "10.0.0.7")]
)
def test_the_address_is_the_one_that_the_setting_says(account: Account, wanted: str, address: str) -> None:
    ec2 = account.ec2(address=wanted)
    instance = ec2.launch(owner(), attempt="run-1")
    both = {"PublicIpAddress": "203.0.113.7", "PrivateIpAddress": "10.0.0.7"}
    rewrite(ec2, "DescribeInstances", {"PublicIpAddress": None, "PrivateIpAddress": None}, both)
    assert ec2.wait_until_ready(instance).address == address


PRIVATE = {"PublicIpAddress": None, "PrivateIpAddress": "10.0.1.7"}


@pytest.mark.parametrize("looks", [1, 5])
@pytest.mark.parametrize("ready_when", ["ssh", "status-checks"])
def test_a_public_address_may_come_a_moment_after_the_instance_runs(
    account: Account, looks: int, ready_when: str
) -> None:
    ec2 = account.ec2(ready_when=ready_when)
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", *[PRIVATE] * looks, {**PRIVATE, "PublicIpAddress": "3.4.5.6"})
    ready = ec2.wait_until_ready(instance)
    assert (ready.address, ready.public) == ("3.4.5.6", True)


@pytest.mark.parametrize(
    ("gives", "patience"),
    [
        ({"MapPublicIpOnLaunch": False}, QUICK),  # its patience is longer than any test
        ({"MapPublicIpOnLaunch": True}, replace(QUICK, appearance_seconds=0.05)),
        (aws_error("UnauthorizedOperation", status=403), replace(QUICK, appearance_seconds=0.05)),
        (aws_error("InvalidAction", "this EC2 knows no subnets"), replace(QUICK, appearance_seconds=0.05)),
    ],
)
def test_without_a_public_address_the_private_one_is_used_on_auto(
    account: Account, caplog: pytest.LogCaptureFixture, gives: dict[str, Any] | Exception, patience: Ec2Policy
) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator.resources.ec2")
    ec2 = account.ec2(policy=patience)
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", PRIVATE)
    rewrite(ec2, "DescribeInstanceStatus", INITIALIZING, {})
    if isinstance(gives, Exception):
        inject(ec2, "DescribeSubnets", gives)
    else:
        events(ec2).register("after-call.ec2.DescribeSubnets", lambda parsed, **_: parsed["Subnets"][0].update(gives))
    ready = ec2.wait_until_ready(instance)
    assert (ready.address, ready.public) == ("10.0.1.7", False)
    assert caplog.messages.count(f"No public address, using 10.0.1.7 of instance {instance.id}") == 1
    assert len(account.asked("DescribeSubnets")) == 1


def test_with_a_private_address_asked_for_no_public_one_is_waited_for(account: Account) -> None:
    ec2 = account.ec2(address="private")
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", PRIVATE)
    assert ec2.wait_until_ready(instance).address == "10.0.1.7"
    assert account.asked("DescribeSubnets") == []


def test_an_instance_without_the_wanted_address_is_reported_with_the_settings_to_change(
    account: Account,
) -> None:
    ec2 = account.ec2(address="public", policy=IMPATIENT)
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", {"PublicIpAddress": None})
    with pytest.raises(Ec2Error, match=r"no public address.*INSTANCE_ADDRESS=private.*SUBNET_ID"):
        ec2.wait_until_ready(instance)


@pytest.mark.parametrize(("ready_when", "state"), [("status-checks", {}), ("ssh", PENDING)])
def test_the_deadline_says_what_was_missing(account: Account, ready_when: str, state: dict[str, Any]) -> None:
    ec2 = account.ec2(ready_when=ready_when, ready_minutes=0.005)
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstances", state)
    rewrite(ec2, "DescribeInstanceStatus", HALF)
    with pytest.raises(Ec2Error, match="READY_MINUTES") as caught:
        ec2.wait_until_ready(instance)
    assert ("1/2 status checks" in str(caught.value)) == (ready_when == "status-checks")
    assert ("READY_WHEN=ssh" in str(caught.value)) == (ready_when == "status-checks")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("Server.SpotInstanceTermination", "AWS took the spot instance back"),
        ("Server.InternalError", "AWS had an internal error"),
        ("Client.InstanceInitiatedShutdown", "from within"),
        ("Client.UserInitiatedShutdown", "somebody terminated"),
    ],
)
def test_an_instance_that_ends_while_it_starts_is_lost_and_says_why(account: Account, code: str, words: str) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    ending = {
        "State": {"Code": 32, "Name": "shutting-down"},
        "StateReason": {"Code": code, "Message": "as AWS words it"},
    }
    rewrite(ec2, "DescribeInstances", PENDING, ending)
    with pytest.raises(InstanceLost, match=f"{instance.id} is shutting-down: .*{words}"):
        ec2.wait_until_ready(instance)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("Client.InternalError", "KMS"),  # the report
        ("Client.VolumeLimitExceeded", "quota for EBS volumes"),
        ("Client.InvalidSnapshot.NotFound", "AMI_ID"),
        ("Client.BrandNew", "as AWS words it"),
    ],
)
def test_what_keeps_an_instance_from_ever_running_is_a_refusal(account: Account, code: str, words: str) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    ending = {"State": {"Code": 48, "Name": "terminated"}, "StateReason": {"Code": code, "Message": "as AWS words it"}}
    rewrite(ec2, "DescribeInstances", PENDING, ending)
    with pytest.raises(LaunchRefused, match=f"{instance.id} never ran: .*{words}"):
        ec2.wait_until_ready(instance)


def test_an_instance_that_ran_is_lost_whatever_aws_calls_its_end(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(ec2, "DescribeInstanceStatus", INITIALIZING)
    ending = {"State": {"Code": 48, "Name": "terminated"}, "StateReason": {"Code": "Client.InternalError"}}
    rewrite(ec2, "DescribeInstances", PENDING, {}, ending)
    with pytest.raises(InstanceLost, match="KMS"):
        ec2.wait_until_ready(instance)


def test_an_end_without_a_reason_is_told_as_one(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    rewrite(
        ec2,
        "DescribeInstances",
        {"State": {"Code": 48, "Name": "terminated"}, "StateReason": {}, "StateTransitionReason": ""},
    )
    with pytest.raises(InstanceLost, match="AWS does not say why"):
        ec2.require_alive(instance.id)


def test_a_new_instance_may_be_unknown_for_a_moment(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    unknown = aws_error("InvalidInstanceID.NotFound")
    inject(ec2, "DescribeInstances", unknown, unknown, unknown)
    inject(ec2, "DescribeInstanceStatus", unknown)
    assert ec2.wait_until_ready(instance).address


def test_an_instance_that_stays_unknown_is_lost(account: Account) -> None:
    ec2 = account.ec2(policy=IMPATIENT)
    instance = ec2.launch(owner(), attempt="run-1")
    inject(ec2, "DescribeInstances", aws_error("InvalidInstanceID.NotFound"))
    with pytest.raises(InstanceLost, match=instance.id):
        ec2.wait_until_ready(instance)
