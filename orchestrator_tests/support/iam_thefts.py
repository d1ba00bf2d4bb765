"""What whoever has stolen the orchestrator's AWS credentials would like to do; the policy must refuse each."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.names import Ec2Tag
from orchestrator.operate.iam_permission import Place
from orchestrator_tests.support.aws_calls import IMAGE, AwsCall, Tags
from orchestrator_tests.support.iam import IamRequest

FOREIGN = "i-0f00000000000f00d"
"""Somebody else's instance."""
FOREIGN_TAGS: Tags = {"team": "payments"}
OURS = "i-00123456789abcdef"

ADMIN = "admins"
"""Somebody else's instance profile, and the role in it."""


@dataclass(frozen=True)
class Theft:
    """It succeeds if each of its calls is allowed."""

    name: str
    calls: Sequence[AwsCall | IamRequest]


def thefts(launch: Mapping[str, Any], place: Place, *, deployment: str, role: str) -> list[Theft]:
    """All of them.

    Args:
        launch: the parameters of a RunInstances that the product has made.
        place: where.
        deployment: as it stands in the tags.
        role: the training's.
    """
    owned = {Ec2Tag.DEPLOYMENT: deployment}
    ours = {**owned, Ec2Tag.PIPELINE: "iris"}

    def tagging(name: str, tags: Tags, *, present: Tags) -> AwsCall:
        return AwsCall("CreateTags", {"Resources": [name], "Tags": _api(tags)}, tags={name: present})

    def on(operation: str, name: str, *, present: Tags, **params: Any) -> AwsCall:
        return AwsCall(operation, {"InstanceIds": [name], **params}, tags={name: present})

    def started(**changed: Any) -> AwsCall:
        return AwsCall("RunInstances", {**copy.deepcopy(dict(launch)), **changed})

    def without(*names: str, **changed: Any) -> AwsCall:
        return AwsCall("RunInstances", {key: launch[key] for key in launch if key not in names} | changed)

    def disk(*more: Mapping[str, Any], **changed: Any) -> AwsCall:
        (root,) = launch["BlockDeviceMappings"]
        return started(BlockDeviceMappings=[{**root, "Ebs": {**root["Ebs"], **changed}}, *more])

    def tagged(tags: Mapping[str, Tags]) -> AwsCall:
        specs = [{"ResourceType": kind, "Tags": _api(tags[kind])} for kind in tags]
        return started(TagSpecifications=specs)

    def passed(profile: str, *, beyond: Sequence[str] = ()) -> AwsCall:
        params = {**launch, "IamInstanceProfile": {"Name": profile}}
        return AwsCall("RunInstances", params, beyond=frozenset(beyond))

    birth = {tag["Key"]: tag["Value"] for tag in launch["TagSpecifications"][0]["Tags"]}
    second = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1}}
    copied = {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 1, "Encrypted": True, "SnapshotId": "snap-0foreign"}}
    lease = {Ec2Tag.LEASE_UNTIL: "2031-05-17T08:30:00Z"}
    tries: dict[str, list[AwsCall | IamRequest]] = {
        "retag a foreign instance as ours, and terminate it": [
            tagging(FOREIGN, owned, present=FOREIGN_TAGS),
            on("TerminateInstances", FOREIGN, present={**FOREIGN_TAGS, **owned}),
        ],
        "terminate a foreign instance": [on("TerminateInstances", FOREIGN, present=FOREIGN_TAGS)],
        "terminate another installation's instance": [
            on("TerminateInstances", FOREIGN, present={Ec2Tag.DEPLOYMENT: "another"})
        ],
        "terminate ours and a foreign one in one call": [
            AwsCall("TerminateInstances", {"InstanceIds": [OURS, FOREIGN]}, tags={OURS: ours, FOREIGN: FOREIGN_TAGS})
        ],
        "write the tags of an attempt on a foreign instance": [tagging(FOREIGN, lease, present=FOREIGN_TAGS)],
        "hide an instance of ours": [tagging(OURS, {Ec2Tag.DEPLOYMENT: "another"}, present=ours)],
        "make an instance of ours another build's": [tagging(OURS, {Ec2Tag.PARTITION: "8"}, present=ours)],
        "put another host key in the place of the planted one": [
            tagging(OURS, {Ec2Tag.HOST_KEY: "ssh-ed25519 AAAA"}, present=ours)
        ],
        "smuggle a tag in with a lease": [tagging(OURS, {**lease, "role": "prod"}, present=ours)],
        "tag with keys that IAM is not told of": [tagging(OURS, {}, present=ours)],
        "tag a volume of ours after its birth": [tagging("vol-0ours", lease, present=ours)],
        "tag a security group": [tagging("sg-0database", {"env": "prod"}, present={})],
        "tag a network as ours": [tagging("vpc-0main", owned, present={})],
        "remove the tags of an instance of ours": [
            AwsCall("DeleteTags", {"Resources": [OURS], "Tags": [{"Key": Ec2Tag.DEPLOYMENT}]}, tags={OURS: ours})
        ],
        "launch a type that costs more": [started(InstanceType="p5.48xlarge")],
        "launch an image of one's own": [started(ImageId="ami-0evil")],
        "launch with a key pair of one's own": [started(KeyName="evil")],
        "launch in the database's subnet": [started(SubnetId="subnet-0database")],
        "launch with a network interface of the database's subnet": [
            without("SubnetId", "SecurityGroupIds", NetworkInterfaces=[{"NetworkInterfaceId": "eni-0database"}])
        ],
        "launch in the database's security group": [started(SecurityGroupIds=["sg-0database"])],
        "launch in our and the database's security group": [
            started(SecurityGroupIds=[*launch["SecurityGroupIds"], "sg-0database"])
        ],
        "launch in another region": [AwsCall("RunInstances", launch, region="eu-north-1")],
        "launch with 16 TB": [disk(VolumeSize=16384)],
        "launch with a volume that is not encrypted": [disk(Encrypted=False)],
        "launch with a second volume that is not encrypted": [disk(second)],
        "launch with a volume of 64,000 IOPS": [disk(VolumeType="io2", Iops=64000)],
        "launch with a copy of somebody's disk": [disk(copied)],
        "launch with an image whose data disk is not encrypted": [
            AwsCall(
                "RunInstances",
                launch,
                image={"BlockDeviceMappings": [*IMAGE["BlockDeviceMappings"], second]},
            )
        ],
        "launch without tags": [without("TagSpecifications")],
        "launch with a volume without tags": [tagged({"instance": birth})],
        "launch with an instance without tags": [tagged({"volume": birth})],
        "launch as another installation": [
            tagged({kind: {**birth, Ec2Tag.DEPLOYMENT: "another"} for kind in ("instance", "volume")})
        ],
        "launch with a tag that opens other doors": [tagged({"instance": {**birth, "role": "prod"}, "volume": birth})],
        "launch with a tagged network interface": [
            tagged({"instance": birth, "volume": birth, "network-interface": birth})
        ],
        "launch with IMDSv1": [started(MetadataOptions={"HttpTokens": "optional"})],
        "launch with the account's default metadata options": [without("MetadataOptions")],
        "launch on hardware of one's own": [started(Placement={"Tenancy": "dedicated"})],
        "launch with the role of an administrator": [passed(ADMIN)],
        "launch with a role that another policy lets us pass": [passed(ADMIN, beyond=["iam:PassRole"])],
        "pass the training's role to a function": [
            IamRequest("iam:PassRole", place.iam("role", role), {"iam:PassedToService": "lambda.amazonaws.com"})
        ],
        "pass an administrator's role to an instance": [
            IamRequest("iam:PassRole", place.iam("role", ADMIN), {"iam:PassedToService": "ec2.amazonaws.com"})
        ],
        "look at another region": [AwsCall("DescribeInstances", region="eu-north-1")],
        "read the host key in user-data": [
            AwsCall("DescribeInstanceAttribute", {"InstanceId": OURS, "Attribute": "userData"}, tags={OURS: ours})
        ],
        "change user-data": [AwsCall("ModifyInstanceAttribute", {"InstanceId": OURS}, tags={OURS: ours})],
        **{
            f"{operation} of an instance of ours": [on(operation, OURS, present=ours)]
            for operation in ("StopInstances", "StartInstances", "RebootInstances", "MonitorInstances")
        },
        "open the firewall": [AwsCall("AuthorizeSecurityGroupIngress")],
        "copy a disk out": [AwsCall("CreateSnapshot")],
        "keep an image of the machine": [AwsCall("CreateImage", {"InstanceId": OURS}, tags={OURS: ours})],
        "ask for spot instances by another way": [AwsCall("RequestSpotInstances")],
        "launch a fleet": [AwsCall("CreateFleet")],
        "make access keys": [AwsCall("CreateAccessKey", service="iam")],
    }
    return [Theft(name, calls) for name, calls in tries.items()]


def _api(tags: Tags) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
