"""The policy of `orchestrator iam-policy` against all that the product asks of AWS, and against thieves."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore
import botocore.session
import dagster as dg
import pytest

import orchestrator
from orchestrator.janitor.actions import ActionExecutor
from orchestrator.janitor.clients import Clients, JanitorPipeline
from orchestrator.janitor.rules import Terminate
from orchestrator.operate.iam_permission import Place
from orchestrator.operate.iam_policy import BIRTH_TAGS, iam_policy
from orchestrator.resources.ec2 import Ec2, Instance, prices
from orchestrator.resources.ec2.launch import LaunchOption, disks, run_instances_request
from orchestrator.settings.groups import MachineSettings, MlflowSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_tests.support.attempts import ThisRun, World, provisioned
from orchestrator_tests.support.aws_calls import IMAGE, AwsCall, needs, recorded_calls
from orchestrator_tests.support.iam import IamRequest, allows, listed, refused
from orchestrator_tests.support.iam_thefts import ADMIN, thefts

pytestmark = pytest.mark.services

PLACE = Place("aws", "us-east-1", "123456789012")
ROLES = {"training": "training-role", ADMIN: ADMIN}
NO_CAPACITY = AwsFault("InsufficientInstanceCapacity", status=500)
QUICK = "#!/bin/sh\nexit 0\n"

Policy = Mapping[str, Any]


# ---- what the product does


@dataclass
class Recording:
    machine: MachineSettings
    calls: list[AwsCall]

    @property
    def policy(self) -> Policy:
        return iam_policy([self.machine], PLACE, roles=["training-role"], compares_types=True).document()

    @property
    def requests(self) -> list[IamRequest]:
        return [request for call in self.calls for request in needs(call, PLACE, roles=ROLES)]

    @property
    def launch(self) -> Mapping[str, Any]:
        """The last one: it is on demand, and has all that a launch may have."""
        return [call.params for call in self.calls if call.operation == "RunInstances"][-1]

    def stolen(self, policy: Policy) -> list[str]:
        """What a thief can do under a policy."""
        tries = thefts(self.launch, PLACE, deployment=self.machine.deployment, role="training-role")
        assert len(tries) >= 20
        return [
            theft.name
            for theft in tries
            if not refused(policy, [one for call in theft.calls for one in as_requests(call)])
        ]


def as_requests(call: AwsCall | IamRequest) -> list[IamRequest]:
    return [call] if isinstance(call, IamRequest) else needs(call, PLACE, roles=ROLES)


@pytest.fixture(scope="module")
def recording(world: World) -> Recording:
    """All that the product asks of AWS: launches, leases, take-overs, prices and ends, by attempts and the janitor."""
    plain = boto3.session.Session().client("ec2")
    boto3.session.Session().client("iam").create_instance_profile(InstanceProfileName="training")

    def tags_of(name: str) -> dict[str, str]:
        answer = plain.describe_tags(Filters=[{"Name": "resource-id", "Values": [name]}])
        return {tag["Key"]: tag["Value"] for tag in answer["Tags"]}

    subnets = [subnet["SubnetId"] for subnet in plain.describe_subnets()["Subnets"]][:2]
    settings = {
        "INSTANCE_TYPE": "t3.large,t3.medium",
        "INSTANCE_MARKET": "spot,on-demand",
        "SUBNET_ID": ",".join(subnets),
        "INSTANCE_PROFILE": "training",
        "INSTANCE_HOURLY_USD": "",
        "READY_WHEN": "status-checks",
        "ROOT_VOLUME_GB": "50",
        **world.script("recorded", QUICK),
    }
    read = SettingsSource(lookup={**world.environment, **settings}.get)
    machine = read.read(MachineSettings)
    prices._on_demand.clear()  # which other tests of this process have filled
    with recorded_calls(tags_of) as calls:
        train(world, 901, settings)
        settings["READY_WHEN"] = "ssh"  # quicker
        take_over_and_cancel(world, 902, settings)
        reap(world, 903, settings, read)
        assert Ec2(machine).with_more_memory("t3.large", machine.instance_types) == []
        # Whatever market, type and subnet: the last of eight is taken.
        world.ec2_server.faults.answer("RunInstances", NO_CAPACITY, times=7)
        train(world, 904, settings)
    image = {
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [
            *IMAGE["BlockDeviceMappings"],
            {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 20, "VolumeType": "gp2", "Encrypted": True}},
            {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
            {"DeviceName": "/dev/sdd", "Ebs": {"VolumeSize": 9, "VolumeType": "gp3", "Encrypted": False}},
            {"DeviceName": "/dev/sde", "Ebs": {"VolumeSize": 10, "VolumeType": "io2", "DeleteOnTermination": False}},
        ],
    }
    with_data_disk = run_instances_request(
        machine,
        LaunchOption(market="spot", instance_type="t3.large", subnet=subnets[0]),
        token="",
        tags=dict.fromkeys(BIRTH_TAGS, machine.deployment),
        user_data="",
        block_devices=disks(machine, image),  # type: ignore[arg-type]
    )
    return Recording(machine, [AwsCall("RunInstances", {**with_data_disk}, image=image), *calls])


def train(world: World, number: int, settings: Mapping[str, str]) -> None:
    attempt = world.attempt(number, run=ThisRun(f"run-{number}"), settings=settings)
    attempt.check()
    provisioned(attempt)
    attempt.renew_lease()
    attempt.train()
    attempt.terminate()
    attempt.close()


def leave(world: World, number: int, settings: Mapping[str, str]) -> Instance:
    """What an attempt leaves whose worker has died."""
    attempt = world.attempt(number, run=ThisRun(f"run-{number}a"), settings=settings)
    left = provisioned(attempt)
    attempt._lease.close()
    return left


def take_over_and_cancel(world: World, number: int, settings: Mapping[str, str]) -> None:
    left = leave(world, number, settings)
    retry = world.attempt(number, run=ThisRun(f"run-{number}b", f"run-{number}a"), settings=settings)
    assert provisioned(retry).id == left.id
    retry.abandon(KeyboardInterrupt("cancelled"))


def reap(world: World, number: int, settings: Mapping[str, str], source: SettingsSource) -> None:
    left = leave(world, number, settings)
    pipeline = JanitorPipeline("tiny", machine=source.read(MachineSettings), mlflow=source.read(MlflowSettings))
    clients = Clients([pipeline])
    assert left.id in [instance.id for instance in clients.instances().found]
    assert [instance.id for instance in clients.disguised([left.id]).found] == [left.id]
    with dg.DagsterInstance.ephemeral() as instance:
        janitor = ActionExecutor(clients, instance, still_right=lambda action: True)
        (result,) = janitor.run([Terminate(why="nobody uses it", instance=left)], until=time.monotonic() + 60)
    assert result.summary == "done"
    clients.close()


def test_whatever_the_product_asks_for_is_allowed(recording: Recording) -> None:
    assert refused(recording.policy, recording.requests) == []


def test_nothing_is_allowed_that_the_product_never_does(recording: Recording) -> None:
    allowed = {name for statement in recording.policy["Statement"] for name in listed(statement["Action"])}
    assert allowed == {request.action for request in recording.requests}
    markets = {"InstanceMarketOptions" in call.params for call in recording.calls if call.operation == "RunInstances"}
    assert markets == {True, False}


def test_every_call_that_stands_in_the_source_was_recorded(recording: Recording) -> None:
    """So that a new one is not forgotten in the policy."""
    operations = botocore.session.get_session().get_service_model("ec2").operation_names
    methods = {botocore.xform_name(name): name for name in operations}
    files = Path(orchestrator.__file__).parent.rglob("*.py")
    words = {word for file in files for word in re.findall(r"[a-z]+(?:_[a-z]+)+", file.read_text(encoding="utf-8"))}
    assert {methods[word] for word in words & methods.keys()} == {
        call.operation for call in recording.calls if call.service == "ec2"
    }


def test_a_thief_gets_nothing(recording: Recording) -> None:
    assert recording.stolen(recording.policy) == []


def test_the_policy_that_stood_in_the_documentation_gave_most_of_it_away(recording: Recording) -> None:
    """So that the thefts and their evaluator are seen to bite."""
    owned = {"StringEquals": {"ec2:ResourceTag/orchestrator:deployment": recording.machine.deployment}}
    allowing: list[Policy] = [
        {"Action": ["ec2:Describe*", "pricing:GetProducts"], "Resource": "*"},
        {"Action": ["ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
        {"Action": "ec2:TerminateInstances", "Resource": "arn:aws:ec2:*:*:instance/*", "Condition": owned},
        {"Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/training-role"},
    ]
    stolen = recording.stolen({"Statement": [{"Effect": "Allow", **statement} for statement in allowing]})
    assert "retag a foreign instance as ours, and terminate it" in stolen
    assert len(stolen) >= 20


def loosened(policy: Policy) -> Iterator[tuple[str, Policy]]:
    """The policy with one action less, one condition less, one value less, or one resource that may be any."""
    for number, statement in enumerate(policy["Statement"]):
        for what, changed in loosened_statement(statement):
            statements = [*policy["Statement"]]
            statements[number] = changed
            yield f"{statement['Sid']} {what}", {**policy, "Statement": statements}


def loosened_statement(statement: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("Action", "Resource"):
        for value in listed(statement[name]):
            others = [other for other in listed(statement[name]) if other != value]
            yield f"without {value}", {**statement, name: others}
            # Of the others, the conditions fit one kind of resource only.
            if name == "Resource" and statement["Sid"] in ("LaunchFrom", "TagAtBirth", "RenewLease", "PassRole"):
                yield f"on any, not {value}", {**statement, name: [*others, re.sub(r"[^/:]*/[^/]*$", "*", value)]}
    for operator, keys in statement.get("Condition", {}).items():
        for key, values in keys.items():
            yield f"without {key}", with_condition(statement, operator, key, None)
            for value in listed(values) if len(listed(values)) > 1 else []:
                others = [other for other in listed(values) if other != value]
                yield f"without {key} {value}", with_condition(statement, operator, key, others)


def with_condition(
    statement: Mapping[str, Any], operator: str, key: str, values: list[str] | None
) -> Mapping[str, Any]:
    changed = copy.deepcopy(dict(statement))
    if values is None:
        del changed["Condition"][operator][key]
    else:
        changed["Condition"][operator][key] = values
    return changed


def test_no_word_of_the_policy_can_be_left_out(recording: Recording) -> None:
    mutants = dict(loosened(recording.policy))
    assert len(mutants) > 60
    unnoticed = [
        name
        for name, mutant in mutants.items()
        if not refused(mutant, recording.requests) and not recording.stolen(mutant)
    ]
    assert unnoticed == []


# ---- the evaluator itself


@pytest.mark.parametrize(
    ("condition", "context", "expected"),
    [
        ({"StringEquals": {"ec2:Region": "a"}}, {"EC2:region": "a"}, True),
        ({"StringEquals": {"ec2:Region": "a"}}, {}, False),
        ({"StringEqualsIfExists": {"ec2:Region": "a"}}, {}, True),
        ({"StringEquals": {"k": "a*"}}, {"k": "ab"}, False),
        ({"StringLike": {"k": "a*"}}, {"k": "ab"}, True),
        ({"StringLike": {"k": "a${*}"}}, {"k": "ab"}, False),
        ({"StringNotEquals": {"k": ["a", "b"]}}, {"k": "b"}, False),
        ({"StringNotEquals": {"k": "a"}}, {}, True),
        ({"ForAllValues:StringEquals": {"k": ["a", "b"]}}, {"k": ("a", "b")}, True),
        ({"ForAllValues:StringEquals": {"k": ["a", "b"]}}, {"k": ("a", "c")}, False),
        ({"ForAllValues:StringEquals": {"k": "a"}}, {}, True),
        ({"ForAnyValue:StringEquals": {"k": "a"}}, {"k": ("a", "c")}, True),
        ({"ForAnyValue:StringEquals": {"k": "a"}}, {}, False),
        ({"Null": {"k": "true"}}, {}, True),
        ({"Null": {"k": "false"}}, {}, False),
        ({"Bool": {"k": "true"}}, {"k": "false"}, False),
        ({"NumericLessThanEquals": {"k": "30"}}, {"k": "100"}, False),
        ({"ArnEquals": {"k": "arn:aws:ec2:*:1:subnet/s"}}, {"k": "arn:aws:ec2:r:1:subnet/s"}, True),
        ({"ArnLike": {"k": "arn:aws:ec2:*:subnet/s"}}, {"k": "arn:aws:ec2:r:1:subnet/s"}, False),
    ],
)
def test_the_evaluator_decides_as_iam_does(
    condition: Mapping[str, Any], context: Mapping[str, str], expected: bool
) -> None:
    statement = {"Effect": "Allow", "Action": "ec2:Run*", "Resource": "arn:*", "Condition": condition}
    request = IamRequest("ec2:RunInstances", "arn:x", context)
    assert allows({"Statement": [statement]}, request) is expected
    denied = {"Effect": "Deny", "Action": "*", "Resource": "*"}
    assert not allows({"Statement": [statement, denied]}, request)
