"""Launches one instance: what is asked of EC2, and in which order launch options are tried."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from orchestrator.errors import CapacityUnavailable, Ec2Error, LaunchRefused, NotOffered, QuotaUsedUp
from orchestrator.resources.ec2.api import Ec2Api
from orchestrator.resources.ec2.instance import Instance, Market
from orchestrator.resources.ec2.tags import Owner, api_tags, build_tags, launch_tags
from orchestrator.resources.ec2.user_data import HostKey, cloud_config
from orchestrator.settings.groups import MachineSettings

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import (
        BlockDeviceMappingTypeDef,
        EbsBlockDeviceTypeDef,
        ImageTypeDef,
        RunInstancesRequestTypeDef,
    )

_log = logging.getLogger(__name__)

# What most images call their root device; taken when AWS does not tell.
_USUAL_ROOT_DEVICE = "/dev/sda1"

# What a training gets at least where nothing is set: its packages, data and model lie beside the system.
_LEAST_ROOT_GB = 30

_GENERAL_PURPOSE = ("gp2", "gp3")
"""The kinds of volumes that the policy of `orchestrator iam-policy` allows."""


@dataclass(frozen=True)
class LaunchOption:
    """One way to get an instance: which market, which type, which subnet."""

    market: Market
    instance_type: str
    subnet: str | None

    def __str__(self) -> str:
        where = f" in {self.subnet}" if self.subnet else ""
        return f"{self.instance_type} ({self.market}){where}"


def launch_options(settings: MachineSettings, *, instance_types: Sequence[str] = ()) -> list[LaunchOption]:
    """Everything that may be tried, the most wanted first.

    Args:
        settings: INSTANCE_MARKET, INSTANCE_TYPE and SUBNET_ID, each a list in order of preference.
        instance_types: replace INSTANCE_TYPE, if any.
    """
    return [
        LaunchOption(market=cast(Market, market), instance_type=type_, subnet=subnet)
        for market in settings.market
        for type_ in instance_types or settings.instance_types
        for subnet in (settings.subnets or [None])
    ]


def client_token(option: LaunchOption, *, build: Mapping[str, str], attempt: str) -> str:
    """The same for the same build, attempt and option, so that AWS launches once however often it is asked.

    At most 64 ASCII characters; a token stands for one option only, for another parameter under the same
    token is an error: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Run_Instance_Idempotency.html

    Args:
        option: market, type and subnet.
        build: the tags that identify the build.
        attempt: what makes this launch different from an earlier one for this build.
    """
    parts = [sorted(build.items()), attempt, option.subnet, option.instance_type, option.market]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def disks(settings: MachineSettings, image: ImageTypeDef) -> list[BlockDeviceMappingTypeDef]:
    """What is changed in the image's disks: the root is set up, and every one is encrypted and goes with the instance.

    EC2 merges this with the image's own mappings, by device name: what is not said here (such as the snapshot) stays
    as it is in the image. A root under another name than the image's would be one more volume.
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-block-device-mapping.html

    Args:
        settings: how large the root volume should be; it is at least as large as the image's own.
        image: as DescribeImages tells it; empty when it does not.
    """
    root = image.get("RootDeviceName") or _USUAL_ROOT_DEVICE
    theirs_gb = max(
        (
            disk.get("Ebs", {}).get("VolumeSize") or 0
            for disk in image.get("BlockDeviceMappings", [])
            if disk.get("DeviceName") == root
        ),
        default=0,
    )
    mappings: list[BlockDeviceMappingTypeDef] = [
        {
            "DeviceName": root,
            "Ebs": {
                "VolumeSize": _root_gb(settings, theirs_gb),
                "VolumeType": "gp3",
                "Encrypted": True,
                "DeleteOnTermination": True,
            },
        }
    ]
    for disk in image.get("BlockDeviceMappings", []):
        name, theirs = disk.get("DeviceName"), disk.get("Ebs")
        if name and name != root and theirs is not None:  # without Ebs it is an instance store
            ours: EbsBlockDeviceTypeDef = {"DeleteOnTermination": True, "Encrypted": True}
            if size := theirs.get("VolumeSize"):  # the API asks for a size or a snapshot, which may not be ours to read
                ours["VolumeSize"] = size
            if (kind := theirs.get("VolumeType", "gp2")) not in _GENERAL_PURPOSE:
                ours["VolumeType"] = "gp3"
                _log.info(f"Volume {name} of image {settings.ami}: gp3 instead of {kind}")
            mappings.append({"DeviceName": name, "Ebs": ours})
    return mappings


def _root_gb(settings: MachineSettings, theirs: int) -> int:
    """AWS refuses a root volume that is smaller than the image's own."""
    wanted = settings.root_volume_gb
    if wanted is None:
        return max(_LEAST_ROOT_GB, theirs)
    if wanted < theirs:
        _log.info(f"Root volume: {theirs} GB, the size of image {settings.ami}, instead of ROOT_VOLUME_GB={wanted}")
    return max(wanted, theirs)


def run_instances_request(
    settings: MachineSettings,
    option: LaunchOption,
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
        option: market, type and subnet.
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
        "InstanceType": cast(Any, option.instance_type),
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
    if option.subnet:
        request["SubnetId"] = option.subnet
    if profile := settings.instance_profile:
        request["IamInstanceProfile"] = {"Arn": profile} if profile.startswith("arn:") else {"Name": profile}
    if option.market == "spot":
        request["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    return request


def launch(api: Ec2Api, owner: Owner, *, attempt: str, instance_types: Sequence[str] = ()) -> Instance:
    """Launch an instance by the first option that has one; see `Ec2.launch`.

    Args:
        api: sends the requests.
        owner: for whom, and until when.
        attempt: different for each instance that a build may get.
        instance_types: replace INSTANCE_TYPE, if any.
    """
    settings = api.settings
    host_key = HostKey.generate()
    tags = launch_tags(owner, deployment=settings.deployment, host_key=host_key.public)
    user_data = cloud_config(
        host_key=host_key,
        deadline=owner.power_off_at,
        training_user=settings.training_user,
        ssh_port=owner.ssh_port,
    )
    build = build_tags(deployment=settings.deployment, pipeline=owner.pipeline, partition=owner.partition)
    block_devices = disks(settings, _image(api))
    refusals: list[CapacityUnavailable] = []
    for option in launch_options(settings, instance_types=instance_types):
        request = run_instances_request(
            settings,
            option,
            token=client_token(option, build=build, attempt=attempt),
            tags=tags,
            user_data=user_data,
            block_devices=block_devices,
        )
        try:
            launched = _launch_once(api, owner, request, host_key=host_key.public, doing=f"launch {option}")
            return replace(launched, tags={**launched.tags, **tags})  # not every API answers with its tags
        except CapacityUnavailable as error:
            refusals.append(error)
            if api.is_new_refusal(f"{option} {type(error).__name__}"):
                _log.warning(f"No capacity, looking for another market, type or subnet: {error}")
    raise _no_instance(owner, refusals)


def _no_instance(owner: Owner, refusals: Sequence[CapacityUnavailable]) -> Ec2Error:
    reasons = "; ".join(str(refusal) for refusal in refusals)
    if all(isinstance(refusal, NotOffered) for refusal in refusals):
        return LaunchRefused(f"there never is an instance for {owner.pipeline} {owner.partition}: {reasons}")
    used_up = any(isinstance(refusal, QuotaUsedUp) for refusal in refusals)
    kind = QuotaUsedUp if used_up else CapacityUnavailable
    return kind(f"there is no instance for {owner.pipeline} {owner.partition} now: {reasons}")


def _launch_once(
    api: Ec2Api, owner: Owner, request: RunInstancesRequestTypeDef, *, host_key: str, doing: str
) -> Instance:
    tries = itertools.count()

    def find() -> Instance | None:
        """The one that has our key: all other tags, others could have copied before we asked."""
        found = api.of_build_once(pipeline=owner.pipeline, partition=owner.partition)
        ours = [instance for instance in found if instance.host_key == host_key]
        return ours[0] if len(ours) == 1 else None

    def send() -> Instance:
        # An earlier try whose answer was lost may have been heard.
        if next(tries) and (launched := find()):
            return launched
        # A token that was used before with another key is refused (IdempotentParameterMismatch, so InstanceLost): what
        # was launched under it has a key that we do not know.
        return api.instance(api.client.run_instances(**request)["Instances"][0])

    return api.call(doing, send, refusal=LaunchRefused)


def _image(api: Ec2Api) -> ImageTypeDef:
    """What AWS tells of the image; nothing when it does not: RunInstances will judge whether it can be used."""
    ami = api.settings.ami
    try:
        images = api.call(f"look at image {ami}", lambda: api.client.describe_images(ImageIds=[ami]).get("Images", []))
    except Ec2Error as error:
        _log.warning(f"Taking {_USUAL_ROOT_DEVICE} for the image's only disk: {error}")
        images = []
    return images[0] if images else {}
