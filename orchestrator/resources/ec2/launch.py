"""Launches one instance: what is asked of EC2, and in which order places are tried."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from orchestrator.errors import CapacityUnavailable, Ec2Error, LaunchRefused
from orchestrator.resources.ec2.api import Ec2Calls
from orchestrator.resources.ec2.errors import error_code
from orchestrator.resources.ec2.instance import Instance, Lease, Market, build_tags, launch_tags
from orchestrator.resources.ec2.user_data import HostKey, cloud_config
from orchestrator.settings.groups import MachineSettings

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import (
        BlockDeviceMappingTypeDef,
        EbsBlockDeviceTypeDef,
        ImageTypeDef,
        RunInstancesRequestTypeDef,
        TagTypeDef,
    )

log = logging.getLogger(__name__)

# What most images call their root device; taken when AWS does not tell.
_USUAL_ROOT_DEVICE = "/dev/sda1"


@dataclass(frozen=True)
class Place:
    """One way to get an instance: which market, which type, which subnet."""

    market: Market
    instance_type: str
    subnet: str | None

    def __str__(self) -> str:
        where = f" in {self.subnet}" if self.subnet else ""
        return f"{self.instance_type} ({self.market}){where}"


def places(settings: MachineSettings, *, instance_type: str | None) -> list[Place]:
    """Everything that may be tried, the most wanted first.

    Args:
        settings: INSTANCE_MARKET, INSTANCE_TYPE and SUBNET_ID, each a list in order of preference.
        instance_type: replaces INSTANCE_TYPE.
    """
    return [
        Place(market=cast(Market, market), instance_type=type_, subnet=subnet)
        for market in settings.market
        for type_ in ([instance_type] if instance_type else settings.instance_types)
        for subnet in (settings.subnets or [None])
    ]


def client_token(place: Place, *, build: Mapping[str, str], attempt: str) -> str:
    """The same for the same build, attempt and place, so that AWS launches once however often it is asked.

    At most 64 ASCII characters; a token stands for one place only, for another parameter under the same
    token is an error: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Run_Instance_Idempotency.html

    Args:
        place: where the instance is to run.
        build: the tags that identify the build.
        attempt: what makes this launch different from an earlier one for this build.
    """
    parts = [sorted(build.items()), attempt, place.subnet, place.instance_type, place.market]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def api_tags(tags: Mapping[str, str]) -> list[TagTypeDef]:
    """Tags in the API's form."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def disks(settings: MachineSettings, image: ImageTypeDef) -> list[BlockDeviceMappingTypeDef]:
    """What is changed in the image's disks: the root is set up, and every one goes with the instance.

    EC2 merges this with the image's own mappings, by device name: what is not said here (snapshot, type,
    encryption) stays as it is in the image. A root under another name than the image's would be one more volume.
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-block-device-mapping.html

    Args:
        settings: the root volume's size.
        image: as DescribeImages tells it; empty when it does not.
    """
    root = image.get("RootDeviceName") or _USUAL_ROOT_DEVICE
    mappings: list[BlockDeviceMappingTypeDef] = [
        {
            "DeviceName": root,
            "Ebs": {
                "VolumeSize": settings.root_volume_gb,
                "VolumeType": "gp3",
                "Encrypted": True,
                "DeleteOnTermination": True,
            },
        }
    ]
    for disk in image.get("BlockDeviceMappings", []):
        name, theirs = disk.get("DeviceName"), disk.get("Ebs")
        if name and name != root and theirs is not None:  # without Ebs it is an instance store
            ours: EbsBlockDeviceTypeDef = {"DeleteOnTermination": True}
            if size := theirs.get("VolumeSize"):  # the API asks for a size or a snapshot, which may not be ours to read
                ours["VolumeSize"] = size
            mappings.append({"DeviceName": name, "Ebs": ours})
    return mappings


def run_instances_request(
    settings: MachineSettings,
    place: Place,
    *,
    token: str,
    tags: Mapping[str, str],
    user_data: str,
    block_devices: Sequence[BlockDeviceMappingTypeDef],
) -> RunInstancesRequestTypeDef:
    """Describe one instance that is tagged from birth, encrypted, and gone when it powers off.

    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html

    Args:
        settings: image, key pair, security group and instance profile.
        place: market, type and subnet.
        token: the ClientToken.
        tags: for the instance and its volumes.
        user_data: the cloud-init document (boto3 encodes it).
        block_devices: see `disks`.
    """
    request: RunInstancesRequestTypeDef = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token,
        "ImageId": settings.ami,
        "InstanceType": cast(Any, place.instance_type),
        "KeyName": settings.key_pair,
        "SecurityGroupIds": [settings.security_group],
        "UserData": user_data,
        "InstanceInitiatedShutdownBehavior": "terminate",
        # Session tokens only (IMDSv2); two hops, so that a training inside a container reaches it as well.
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": block_devices,
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": api_tags(tags)},
            {"ResourceType": "volume", "Tags": api_tags(tags)},
        ],
    }
    if place.subnet:
        request["SubnetId"] = place.subnet
    if profile := settings.instance_profile:
        request["IamInstanceProfile"] = {"Arn": profile} if profile.startswith("arn:") else {"Name": profile}
    if place.market == "spot":
        request["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    return request


def launch(
    calls: Ec2Calls,
    settings: MachineSettings,
    lease: Lease,
    *,
    attempt: str,
    instance_type: str | None,
    find: Callable[[], Instance | None],
    on_progress: Callable[[str], None],
) -> Instance:
    """Launch an instance in the first place that has one; see `Ec2.launch`.

    Args:
        calls: sends the requests.
        settings: the machine.
        lease: for whom, and until when.
        attempt: different for each instance that a build may get.
        instance_type: replaces INSTANCE_TYPE.
        find: looks for an instance of this build once, without patience.
        on_progress: gets a line when a place has no capacity.
    """
    host_key = HostKey.generate()
    tags = launch_tags(lease, deployment=settings.deployment, host_key=host_key.public)
    user_data = cloud_config(host_key=host_key, deadline=lease.expires_at)
    build = build_tags(deployment=settings.deployment, pipeline=lease.pipeline, partition=lease.partition)
    block_devices = disks(settings, _image(calls, settings))
    refusals: list[str] = []
    for place in places(settings, instance_type=instance_type):
        request = run_instances_request(
            settings,
            place,
            token=client_token(place, build=build, attempt=attempt),
            tags=tags,
            user_data=user_data,
            block_devices=block_devices,
        )
        try:
            return _launch_once(calls, settings, request, doing=f"launch {place}", find=find)
        except CapacityUnavailable as error:
            on_progress(str(error))
            refusals.append(str(error))
    raise CapacityUnavailable(
        f"there is no instance for {lease.pipeline} {lease.partition} now: " + "; ".join(refusals)
    )


def _launch_once(
    calls: Ec2Calls,
    settings: MachineSettings,
    request: RunInstancesRequestTypeDef,
    *,
    doing: str,
    find: Callable[[], Instance | None],
) -> Instance:
    tries = itertools.count()

    def send() -> Instance:
        # An earlier try whose answer was lost may have been heard.
        if next(tries) and (heard := find()):
            return heard
        try:
            answer = calls.client.run_instances(**request)
        except ClientError as error:
            # The token was used before, with another host key: by this attempt, in a process that died.
            if error_code(error) == "IdempotentParameterMismatch" and (former := find()):
                return former
            raise
        return Instance.from_api(answer["Instances"][0], address=settings.address)

    return calls.call(doing, send, refusal=LaunchRefused)


def _image(calls: Ec2Calls, settings: MachineSettings) -> ImageTypeDef:
    """What AWS tells of the image; nothing when it does not: RunInstances will judge whether it can be used."""
    try:
        images = calls.call(
            f"look at image {settings.ami}",
            lambda: calls.client.describe_images(ImageIds=[settings.ami])["Images"],
        )
    except Ec2Error as error:
        log.warning("taking %s for the image's only disk, because we %s", _USUAL_ROOT_DEVICE, error)
        images = []
    return images[0] if images else {}
