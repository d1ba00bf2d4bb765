from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from orchestrator.errors import CapacityUnavailable, Ec2Error, InstanceLost, LaunchRefused
from orchestrator.resources.ec2.tags import launch_tags
from orchestrator_tests.support.ec2_account import (
    IMPATIENT,
    POWER_OFF_AT,
    Account,
    aws_error,
    events,
    http_answer,
    inject,
    lose_answers,
    open_account,
    owner,
)

NO_CAPACITY = aws_error("InsufficientInstanceCapacity", "We currently do not have sufficient capacity", status=500)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with open_account(monkeypatch) as account:
        yield account


# A contract: earlier versions of ourselves, the janitor and users' scripts find instances by these very bytes.
GOLDEN_TAGS = {
    "Name": "orchestrator iris feature/x#12",
    "orchestrator:deployment": "ours",
    "orchestrator:pipeline": "iris",
    "orchestrator:partition": "feature/x#12",
    "orchestrator:dagster-run": "run-1",
    "orchestrator:mlflow-run": "mlflow-1",
    "orchestrator:expires-at": "2031-05-17T08:30:00Z",
}


def test_every_tag_is_in_the_call_that_launches(account: Account) -> None:
    instance = account.ec2().launch(owner(partition="feature/x#12"), attempt="run-1")
    (request,) = account.asked("RunInstances")
    expected = {**GOLDEN_TAGS, "orchestrator:host-key": instance.host_key}
    specified = {
        spec["ResourceType"]: {tag["Key"]: tag["Value"] for tag in spec["Tags"]}
        for spec in request["TagSpecifications"]
    }
    assert specified == {"instance": expected, "volume": expected}
    assert instance.tags == expected
    assert (instance.deployment, instance.pipeline, instance.partition) == ("ours", "iris", "feature/x#12")
    assert (instance.dagster_run, instance.mlflow_run, instance.power_off_at) == ("run-1", "mlflow-1", POWER_OFF_AT)
    assert instance.alive


@pytest.mark.parametrize(
    ("partition", "value"),
    [
        ("a" * 300, "a" * 239 + "~9835fa6bf4e20a9b"),
        ("aws:x", "aws_x~40c294fff1707136"),
        ("*?\\[", "____~71c9feabbe6b5a53"),
        ("\n", "_~01ba4719c80b6fe9"),
        ("Ünïcode ✓#1", "Ünïcode ✓#1"),
    ],
)
def test_a_key_that_ec2_would_not_take_becomes_the_same_tag_in_every_version(partition: str, value: str) -> None:
    tags = launch_tags(owner(partition=partition), deployment="ours", host_key="ssh-ed25519 A")
    assert tags["orchestrator:partition"] == value
    assert list(tags) == [*GOLDEN_TAGS, "orchestrator:host-key"]


def test_the_instance_is_what_the_settings_say(account: Account) -> None:
    instance = account.ec2(instance_types=("c5.large",), root_volume_gb=44).launch(owner(), attempt="run-1")
    raw = account.aws.describe_instances(InstanceIds=[instance.id])["Reservations"][0]["Instances"][0]
    assert raw["InstanceType"] == instance.type == "c5.large"
    assert raw["KeyName"] == "trainer"
    assert raw["SubnetId"] == account.subnets[0]
    assert raw["SecurityGroups"][0]["GroupId"] == account.security_group
    assert raw["MetadataOptions"]["HttpTokens"] == "required"
    assert raw["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert instance.market == "on-demand"
    shutdown = account.aws.describe_instance_attribute(
        InstanceId=instance.id, Attribute="instanceInitiatedShutdownBehavior"
    )
    assert shutdown["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"


def test_the_root_volume_is_encrypted_tagged_and_goes_with_the_instance(account: Account) -> None:
    instance = account.ec2(root_volume_gb=44).launch(owner(), attempt="run-1")
    raw = account.aws.describe_instances(InstanceIds=[instance.id])["Reservations"][0]["Instances"][0]
    (mapping,) = raw["BlockDeviceMappings"]
    assert mapping["DeviceName"] == raw["RootDeviceName"]
    assert mapping["Ebs"]["DeleteOnTermination"]
    (volume,) = account.aws.describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"]
    assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (44, "gp3", True)
    assert {tag["Key"]: tag["Value"] for tag in volume["Tags"]} == instance.tags


def test_the_host_key_in_the_tag_is_the_one_in_the_user_data(account: Account) -> None:
    instance = account.ec2().launch(owner(), attempt="run-1")
    user_data = account.aws.describe_instance_attribute(InstanceId=instance.id, Attribute="userData")
    document = base64.b64decode(user_data["UserData"]["Value"]).decode()
    assert document.startswith("#cloud-config\n")
    assert instance.host_key
    assert instance.host_key.startswith("ssh-ed25519 ")
    assert instance.host_key in document
    assert str(int(POWER_OFF_AT.timestamp())) in document


def test_the_root_volume_is_set_up_under_the_images_own_name_for_it(account: Account) -> None:
    ec2 = account.ec2()

    def name(parsed: dict[str, Any], **_: object) -> None:
        parsed["Images"][0]["RootDeviceName"] = "/dev/xvda"

    events(ec2).register("after-call.ec2.DescribeImages", name)
    ec2.launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    assert request["BlockDeviceMappings"][0]["DeviceName"] == "/dev/xvda"


@pytest.mark.parametrize(
    ("setting", "of_the_image", "asked_for", "logged"),
    [
        (None, 105, 105, False),  # the report: a Deep Learning AMI
        (None, 8, 30, False),
        (None, None, 30, False),
        (44, 105, 105, True),
        (200, 105, 200, False),
        (10, 8, 10, False),
    ],
)
def test_the_root_volume_is_never_smaller_than_the_images_own(
    account: Account,
    caplog: pytest.LogCaptureFixture,
    setting: int | None,
    of_the_image: int | None,
    asked_for: int,
    logged: bool,
) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator.resources.ec2")
    ec2 = account.ec2(root_volume_gb=setting)
    root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": "snap-1"}}
    if of_the_image:
        root["Ebs"]["VolumeSize"] = of_the_image  # type: ignore[index]

    def describe(parsed: dict[str, Any], **_: object) -> None:
        data = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 500}}
        parsed["Images"][0].update(RootDeviceName="/dev/xvda", BlockDeviceMappings=[data, root])

    events(ec2).register("after-call.ec2.DescribeImages", describe)
    ec2.launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    assert request["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == asked_for
    lines = [line for line in caplog.messages if line.startswith("Root volume: 105 GB")]
    assert bool(lines) is logged


def test_the_images_data_disks_go_with_the_instance_encrypted_too(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator.resources.ec2")
    ec2 = account.ec2(root_volume_gb=44)

    def add_disks(parsed: dict[str, Any], **_: object) -> None:
        parsed["Images"][0]["BlockDeviceMappings"] += [
            {
                "DeviceName": "/dev/sdf",
                "Ebs": {"SnapshotId": "snap-1", "VolumeSize": 200, "VolumeType": "gp2", "DeleteOnTermination": False},
            },
            {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 500, "VolumeType": "st1", "Encrypted": False}},
            {"DeviceName": "/dev/sdh", "Ebs": {"VolumeSize": 9, "VolumeType": "gp3", "Encrypted": True}},
        ]

    events(ec2).register("after-call.ec2.DescribeImages", add_disks)
    instance = ec2.launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    root, *others = request["BlockDeviceMappings"]
    assert (root["DeviceName"], root["Ebs"]["VolumeSize"]) == ("/dev/sda1", 44)
    # The disk's content stays the image's; its kind does where the policy of `iam-policy` allows it. An instance store
    # has nothing to delete.
    safe = {"DeleteOnTermination": True, "Encrypted": True}
    assert others == [
        {"DeviceName": "/dev/sdf", "Ebs": {**safe, "VolumeSize": 200}},
        {"DeviceName": "/dev/sdg", "Ebs": {**safe, "VolumeSize": 500, "VolumeType": "gp3"}},
        {"DeviceName": "/dev/sdh", "Ebs": {**safe, "VolumeSize": 9}},
    ]
    assert [line for line in caplog.messages if line.startswith("Volume /dev/")] == [
        f"Volume /dev/sdg of image {account.ami}: gp3 instead of st1"
    ]
    assert all(volume["Encrypted"] for volume in account.aws.describe_volumes()["Volumes"])
    ec2.terminate(instance.id)
    assert account.aws.describe_volumes()["Volumes"] == []


def test_an_image_that_cannot_be_described_is_left_to_run_instances_to_judge(account: Account) -> None:
    ec2 = account.ec2()
    inject(ec2, "DescribeImages", aws_error("UnauthorizedOperation", status=403))
    ec2.launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    assert request["BlockDeviceMappings"][0]["DeviceName"] == "/dev/sda1"


@pytest.mark.parametrize(
    ("profile", "sent"),
    [
        ("trainers", {"Name": "trainers"}),
        ("arn:aws:iam::1:instance-profile/trainers", {"Arn": "arn:aws:iam::1:instance-profile/trainers"}),
    ],
)
def test_an_instance_profile_is_a_name_or_an_arn(account: Account, profile: str, sent: dict[str, str]) -> None:
    ec2 = account.ec2(instance_profile=profile)
    inject(ec2, "RunInstances", aws_error("InvalidParameterValue", "Invalid IAM Instance Profile name"))
    with pytest.raises(LaunchRefused, match="INSTANCE_PROFILE"):
        ec2.launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    assert request["IamInstanceProfile"] == sent


def test_a_spot_instance_is_asked_for_once_and_never_merely_stopped(account: Account) -> None:
    instance = account.ec2(market=("spot",)).launch(owner(), attempt="run-1")
    (request,) = account.asked("RunInstances")
    assert request["InstanceMarketOptions"] == {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }
    assert instance.market == "spot"


def test_options_are_tried_in_order_until_one_has_capacity(account: Account, caplog: pytest.LogCaptureFixture) -> None:
    one, two = account.subnets[:2]
    ec2 = account.ec2(market=("spot", "on-demand"), instance_types=("p3.2xlarge", "g5.xlarge"), subnets=(one, two))
    inject(
        ec2,
        "RunInstances",
        aws_error("SpotMaxPriceTooLow"),
        NO_CAPACITY,
        aws_error("MaxSpotInstanceCountExceeded"),
        aws_error("Unsupported", "Your requested instance type is not supported in your requested zone"),
        aws_error("VcpuLimitExceeded"),
        aws_error("InsufficientFreeAddressesInSubnet"),
    )
    instance = ec2.launch(owner(), attempt="run-1")
    tried = [
        (bool(r.get("InstanceMarketOptions")), r["InstanceType"], r["SubnetId"]) for r in account.asked("RunInstances")
    ]
    assert tried == [
        (True, "p3.2xlarge", one),
        (True, "p3.2xlarge", two),
        (True, "g5.xlarge", one),
        (True, "g5.xlarge", two),
        (False, "p3.2xlarge", one),
        (False, "p3.2xlarge", two),
        (False, "g5.xlarge", one),
    ]
    assert (instance.type, instance.market) == ("g5.xlarge", "on-demand")
    beginning = "No capacity, looking for another market, type or subnet: could not launch "
    assert [line.startswith(beginning) for line in caplog.messages] == [True] * 6
    tokens = [request["ClientToken"] for request in account.asked("RunInstances")]
    assert len(set(tokens)) == len(tokens)
    assert all(len(token) <= 64 for token in tokens)


def test_when_no_option_has_capacity_each_answer_is_named(account: Account) -> None:
    ec2 = account.ec2(instance_types=("p3.2xlarge", "g5.xlarge"))
    inject(ec2, "RunInstances", NO_CAPACITY, aws_error("VcpuLimitExceeded"))
    with pytest.raises(CapacityUnavailable) as caught:
        ec2.launch(owner(), attempt="run-1")
    for words in ("p3.2xlarge", "InsufficientInstanceCapacity", "g5.xlarge", "VcpuLimitExceeded", "INSTANCE_TYPE"):
        assert words in str(caught.value)
    assert account.alive() == []


@pytest.mark.parametrize(
    "never",
    [
        aws_error("Unsupported", "Your requested instance type is not supported in your requested zone"),
        aws_error(
            "VcpuLimitExceeded", "You have requested more vCPU capacity than your current vCPU limit of 0 allows"
        ),
    ],
)
def test_what_no_option_ever_has_is_refused_instead_of_waited_for(account: Account, never: Exception) -> None:
    ec2 = account.ec2(instance_types=("p3.2xlarge", "g5.xlarge"))
    inject(ec2, "RunInstances", never, never, NO_CAPACITY, never)
    with pytest.raises(LaunchRefused, match=r"p3\.2xlarge.*g5\.xlarge"):
        ec2.launch(owner(), attempt="run-1")
    with pytest.raises(CapacityUnavailable):
        ec2.launch(owner(), attempt="run-1-2")


def test_a_refusal_ends_the_search_at_once(account: Account) -> None:
    ec2 = account.ec2(key_pair="nobody", subnets=tuple(account.subnets[:3]))
    with pytest.raises(LaunchRefused, match="KEY_PAIR_NAME"):
        ec2.launch(owner(), attempt="run-1")
    assert len(account.asked("RunInstances")) == 1


def test_one_run_may_ask_for_another_instance_type(account: Account) -> None:
    instance = account.ec2(instance_types=("t3.medium", "t3.large")).launch(
        owner(), attempt="run-1", instance_types=["c5.large"]
    )
    assert instance.type == "c5.large"


def test_the_client_token_is_the_same_for_the_same_attempt_only(account: Account) -> None:
    ec2 = account.ec2()
    for partition, attempt in (("7", "run-1"), ("7", "run-1"), ("7", "run-2"), ("8", "run-1")):
        ec2.launch(owner(partition=partition), attempt=attempt)
    first, same, second, other = [request["ClientToken"] for request in account.asked("RunInstances")]
    assert first == same
    assert len({first, second, other}) == 3


# Outages


@pytest.mark.parametrize(
    "fault",
    [
        EndpointConnectionError(endpoint_url="https://ec2"),
        aws_error("RequestLimitExceeded", status=503),
        aws_error("InternalError", status=500),
        lambda: http_answer("<html>Bad gateway</html>", status=502),
        lambda: http_answer("not XML at all"),
    ],
    ids=["no connection", "throttled", "internal error", "proxy's page", "no XML"],
)
def test_a_short_outage_is_ridden_out(account: Account, fault: Exception | Callable[[], AWSResponse]) -> None:
    ec2 = account.ec2()
    for operation in ("RunInstances", "DescribeInstances", "TerminateInstances", "CreateTags"):
        inject(ec2, operation, fault, fault)
    instance = ec2.launch(owner(), attempt="run-1")
    ec2.tag(instance.id, {"a": "b"})
    assert ec2.describe(instance.id).tags["a"] == "b"
    assert ec2.terminate(instance.id) == "shutting-down"
    assert account.alive() == []


def test_a_launch_whose_answer_was_lost_is_found_not_repeated(account: Account) -> None:
    ec2 = account.ec2()
    lose_answers(ec2, "RunInstances", ReadTimeoutError(endpoint_url="https://ec2"))
    instance = ec2.launch(owner(), attempt="run-1")
    assert account.alive() == [instance.id]
    assert len(account.asked("RunInstances")) == 1


def test_a_copy_that_was_launched_before_the_lost_answer_is_not_taken_for_ours(account: Account) -> None:
    former = account.ec2().launch(owner(), attempt="another's")
    ec2 = account.ec2()
    lose_answers(ec2, "RunInstances", ReadTimeoutError(endpoint_url="https://ec2"))
    instance = ec2.launch(owner(), attempt="run-1")
    assert instance.id != former.id
    assert len(account.alive()) == 2, "ours, launched once, and the copy"


def test_a_token_that_was_used_before_leads_to_no_instance_whose_host_key_is_not_ours(account: Account) -> None:
    former = account.ec2().launch(owner(), attempt="run-1")
    again = account.ec2()
    for _ in "while it runs", "when it is gone":
        inject(again, "RunInstances", aws_error("IdempotentParameterMismatch"))
        with pytest.raises(InstanceLost, match="start the run again"):
            again.launch(owner(), attempt="run-1")
        again.terminate(former.id)


def test_a_long_outage_ends_in_words(account: Account) -> None:
    ec2 = account.ec2(policy=IMPATIENT)
    inject(ec2, "DescribeInstances", EndpointConnectionError(endpoint_url="https://ec2.invalid"))
    with pytest.raises(Ec2Error, match="AWS_ENDPOINT_URL"):
        ec2.find(pipeline="iris", partition="7")
