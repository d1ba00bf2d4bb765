"""The calls of AWS that the product really makes, and what each of them needs IAM to allow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest

from orchestrator.operate.iam_permission import Place
from orchestrator_tests.support.iam import IamRequest, Values, listed

Tags = Mapping[str, str]

IMAGE: Mapping[str, Any] = {
    "RootDeviceName": "/dev/sda1",
    "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8, "VolumeType": "gp2"}}],
}
"""An image as most are: not encrypted itself."""

# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html
_KINDS = {"i": "instance", "vol": "volume", "sg": "security-group", "vpc": "vpc", "subnet": "subnet", "ami": "image"}


@dataclass(frozen=True)
class AwsCall:
    """One call, as boto3 was asked for it.

    Attributes:
        tags: of each resource that it names, at that moment.
        image: that it launches, in DescribeImages' words.
        beyond: the actions that it needs, and that another policy of the caller's allows.
    """

    operation: str
    params: Mapping[str, Any] = field(default_factory=dict)
    service: str = "ec2"
    tags: Mapping[str, Tags] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=lambda: IMAGE)
    region: str = ""
    beyond: frozenset[str] = frozenset()


@contextmanager
def recorded_calls(tags_of: Callable[[str], Tags]) -> Iterator[list[AwsCall]]:
    """Every call of every client that boto3 makes in this process meanwhile.

    Args:
        tags_of: looks a resource's tags up, behind the back of what is recorded.
    """
    calls: list[AwsCall] = []

    def note(params: Mapping[str, Any], model: Any, **_: object) -> None:
        ids = [*params.get("InstanceIds", []), *params.get("Resources", [])]
        tagged = {} if model.name.startswith("Describe") else {name: tags_of(name) for name in ids}
        service = model.service_model.service_name
        # A body may be an open file.
        asked = {name: copy.deepcopy(value) for name, value in params.items() if name != "Body"}
        calls.append(AwsCall(model.name, asked, service=service, tags=tagged))

    make = boto3.session.Session.client

    def client(session: boto3.session.Session, *arguments: Any, **options: Any) -> Any:
        made = make(session, *arguments, **options)
        made.meta.events.register("provide-client-params", note)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3.session.Session, "client", client)
        yield calls


def needs(call: AwsCall, place: Place, *, roles: Mapping[str, str]) -> list[IamRequest]:
    """All that IAM must allow, so that AWS does what a call asks for.

    Args:
        call: what is asked for.
        place: where, unless the call says so.
        roles: instance profile → the role in it.
    """
    if call.region:
        place = Place(place.partition, call.region, place.account)
    action = f"{call.service}:{call.operation}"
    if call.operation == "RunInstances":
        requests = _of_launch(call, place, roles)
    elif ids := [*listed(call.params.get("InstanceId", [])), *call.params.get("InstanceIds", [])]:
        if call.operation.startswith("Describe") and not call.operation.endswith("Attribute"):
            requests = [IamRequest(action)]
        else:
            requests = [_on(action, name, call, place) for name in ids]
    elif named := call.params.get("Resources"):
        requests = [_on(action, name, call, place) for name in named]
    else:
        requests = [IamRequest(action)]
    region: dict[str, Values] = {"ec2:Region": place.region} if call.service == "ec2" else {}
    return [
        IamRequest(each.action, each.resource, {**each.context, **(region if each.action.startswith("ec2:") else {})})
        for each in requests
        if each.action not in call.beyond
    ]


def _on(action: str, name: str, call: AwsCall, place: Place) -> IamRequest:
    kind = _KINDS[name.split("-", 1)[0]]
    (resource,) = place.ec2(kind, [name], owned=kind != "image")
    present = {
        f"{service}:ResourceTag/{key}": value
        for service in ("aws", "ec2")
        for key, value in call.tags.get(name, {}).items()
    }
    return IamRequest(action, resource, {**present, **_requested(call.params.get("Tags", []))})


def _requested(tags: list[Mapping[str, str]]) -> dict[str, Values]:
    if not tags:
        return {}
    values: dict[str, Values] = {f"aws:RequestTag/{tag['Key']}": tag.get("Value", "") for tag in tags}
    return {**values, "aws:TagKeys": tuple(tag["Key"] for tag in tags)}


def _of_launch(call: AwsCall, place: Place, roles: Mapping[str, str]) -> list[IamRequest]:
    """https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html, scenario EC2-VPC-EBS."""
    params = call.params
    tags = {spec["ResourceType"]: _requested(spec["Tags"]) for spec in params.get("TagSpecifications", [])}
    instance: dict[str, Values] = {
        "ec2:InstanceType": params["InstanceType"],
        "ec2:MetadataHttpTokens": params.get("MetadataOptions", {}).get("HttpTokens", "optional"),
        "ec2:Tenancy": params.get("Placement", {}).get("Tenancy", "default"),
        **tags.get("instance", {}),
    }
    passed = []
    if profile := params.get("IamInstanceProfile"):
        arn = profile.get("Arn") or place.iam("instance-profile", profile["Name"])
        instance["ec2:InstanceProfile"] = arn
        role = roles[arn.rsplit("/", 1)[-1]]
        service: dict[str, Values] = {"iam:PassedToService": "ec2.amazonaws.com"}
        passed = [IamRequest("iam:PassRole", place.iam("role", role), service)]
    used: list[tuple[str, str, Mapping[str, Values]]] = [
        ("image", params["ImageId"], {}),
        ("instance", "*", instance),
        *(("security-group", group, {}) for group in params.get("SecurityGroupIds", [])),
        *((("key-pair", params["KeyName"], {}),) if "KeyName" in params else ()),
        *_disks(call, tags.get("volume", {})),
        *_interface(params, place, tags.get("network-interface", {})),
    ]
    launching = [
        IamRequest("ec2:RunInstances", place.ec2(kind, [name], owned=kind not in ("image", "snapshot"))[0], context)
        for kind, name, context in used
    ]
    tagging = [
        IamRequest("ec2:CreateTags", place.ec2(kind, ["*"])[0], {"ec2:CreateAction": "RunInstances", **context})
        for kind, context in tags.items()
    ]
    return [*launching, *tagging, *passed]


def _disks(call: AwsCall, tags: Mapping[str, Values]) -> Iterator[tuple[str, str, Mapping[str, Values]]]:
    """The image's disks, as the call changes them, and its own."""
    disks: dict[str, dict[str, Any]] = {}
    for mapping in (*call.image["BlockDeviceMappings"], *call.params.get("BlockDeviceMappings", [])):
        if "Ebs" in mapping:
            disks.setdefault(mapping["DeviceName"], {}).update(mapping["Ebs"])
    for disk in disks.values():
        yield (
            "volume",
            "*",
            {
                "ec2:Encrypted": str(disk.get("Encrypted", False)).lower(),
                "ec2:VolumeSize": str(disk["VolumeSize"]),
                "ec2:VolumeType": disk.get("VolumeType", "gp2"),
                **tags,
            },
        )
        if snapshot := disk.get("SnapshotId"):
            yield "snapshot", snapshot, {}


def _interface(
    params: Mapping[str, Any], place: Place, tags: Mapping[str, Values]
) -> Iterator[tuple[str, str, Mapping[str, Values]]]:
    """A new one in the subnet that is named, or in the default network; or one that is there, wherever that is."""
    if existing := params.get("NetworkInterfaces"):
        for interface in existing:
            subnet = "subnet-of-" + interface["NetworkInterfaceId"]
            yield "network-interface", interface["NetworkInterfaceId"], {"ec2:Subnet": place.ec2("subnet", [subnet])[0]}
        return
    subnet = params.get("SubnetId", "subnet-of-the-default-network")
    yield "subnet", subnet, {}
    yield "network-interface", "*", {"ec2:Subnet": place.ec2("subnet", [subnet])[0], **tags}
