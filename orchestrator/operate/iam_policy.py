"""The tightest IAM policy with which the orchestrator still works, made from the present settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import SettingsError
from orchestrator.names import Ec2Tag
from orchestrator.operate.iam_mlflow import mlflow_access
from orchestrator.operate.iam_permission import ACCOUNT, Permission, Place, literal
from orchestrator.operate.iam_targets import target_access
from orchestrator.pipeline.defs_folder import DefsFolder, folder_of_pipelines, load_defs_folder
from orchestrator.resources.ec2.launch import disks
from orchestrator.resources.ec2.tags import Owner, deployment_tag, launch_tags
from orchestrator.resources.targets import TargetBlock
from orchestrator.settings.groups import MachineSettings, ProjectSettings
from orchestrator.settings.source import SettingsSource

LARGEST_POLICY = 6144
"""Characters, white space not counted: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html."""

_OWNER = f"aws:RequestTag/{Ec2Tag.DEPLOYMENT}"
_OWNED = f"aws:ResourceTag/{Ec2Tag.DEPLOYMENT}"

_ANYBODY = Owner(pipeline="", partition="", dagster_run="", mlflow_run="", power_off_at=datetime.fromtimestamp(0, UTC))
BIRTH_TAGS = tuple(launch_tags(_ANYBODY, deployment="", host_key=""))
"""The keys of the tags that an instance and its volumes are launched with."""
ATTEMPT_TAGS = (*_ANYBODY.attempt_tags(), Ec2Tag.LEASE_UNTIL)
"""The keys of the tags that change while an instance lives: whose attempt uses it, and that it is alive."""

LIMITS = (
    "No policy limits the number of instances: ask for a quota of vCPUs that fits MAX_INSTANCES (Service Quotas, "
    "EC2), and set a budget alarm.",
    "No policy sees what is in user-data: whoever has these credentials runs programs of his own on such an "
    "instance, with the rights of INSTANCE_PROFILE.",
    "Describe actions know no resources: they show all instances, images and subnets of the account in this region.",
    f"Who else in the account may set the tags orchestrator:* can hand an instance of his to this installation, which "
    f"ends it. One whose tag {Ec2Tag.DEPLOYMENT} somebody has changed cannot be ended with this policy: its own "
    "deadline does. Keep these tags to this role by a policy of the organization (SCP).",
    "Attach it to a role (of the machine, task or pod that runs the orchestrator) rather than to a user with access "
    "keys.",
)

TRAINING_ROLE = (
    "ec2:CreateTags, ec2:DeleteTags: it could change whose its instance is, and until when",
    "ec2:RunInstances, ec2:TerminateInstances, ec2:StopInstances, ec2:Modify*, and all of ec2:*: it could outlive its "
    "deadline, or end other builds' instances",
    "ec2:DescribeInstanceAttribute: other instances' user-data holds their private SSH host keys",
    "iam:*, and sts:AssumeRole of the orchestrator's role: it could give itself the rest of this list",
    "ssm:SendCommand, ssm:StartSession, ec2-instance-connect:*: it could become root on its own and other instances",
    "lambda:*, scheduler:*: it could stop a keeper of deadlines inside AWS (docs/aws.md)",
    "secretsmanager:GetSecretValue, ssm:GetParameter* and s3:* of what is not its own: name the bucket, the prefix and "
    "the secret that it needs",
)
"""What the role in INSTANCE_PROFILE must not have, because every training, and so every commit, has it."""


@dataclass(frozen=True)
class IamPolicy:
    """The policy, and what must be known of it.

    Attributes:
        notes: what had to be assumed, and what it refuses that the settings alone do not show.
    """

    permissions: tuple[Permission, ...]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The policy, as AWS takes it."""
        return {
            "Version": "2012-10-17",
            "Statement": [permission.statement() for permission in self.permissions],
        }

    def explanation(self) -> str:
        """What each statement is for, what no policy can do, and what the training's role must not have."""
        return "\n".join(
            [
                *(f"{permission.sid}: {permission.why}" for permission in self.permissions),
                "",
                "What it cannot do:",
                *(f"- {limit}" for limit in LIMITS),
                "",
                "What the role in INSTANCE_PROFILE must not have (every training has it):",
                *(f"- {actions}" for actions in TRAINING_ROLE),
            ]
        )


def _present_folder() -> DefsFolder:
    """All pipelines that this installation serves.

    Raises:
        SettingsError: those of a pipeline cannot be used; the policy would not fit it.
    """
    folder = load_defs_folder(folder_of_pipelines())
    if folder.broken:
        raise SettingsError(f"a policy must fit every pipeline, and one cannot be read: {folder.broken[0].fault}")
    return folder


def present_policy(
    *,
    account: str | None = None,
    roles: Sequence[str] = (),
    volume_gb: int | None = None,
    targets: Sequence[TargetBlock] = (),
) -> IamPolicy:
    """The policy for the present settings; see `iam_policy`.

    Args:
        account: number of the AWS account; default: that of an instance profile's ARN, else `ACCOUNT`.
        roles: of the instance profiles; see `iam_policy`.
        volume_gb: the largest volume of an instance; see `iam_policy`.
        targets: of `orchestrator deploy`, besides those of the pipelines.

    Raises:
        SettingsError: there is no region, or a pipeline's settings cannot be used.
    """
    folder = _present_folder()
    pipelines = folder.watched.settings or (SettingsSource(),)
    machines = [pipeline.read(MachineSettings) for pipeline in pipelines]
    profiles = [machine.instance_profile or "" for machine in machines]
    named = (found[1] for profile in profiles if (found := re.match(r"arn:[^:]*:iam::(\d{12}):", profile)))
    place = Place.present(account or next(named, None))
    policy = iam_policy(
        machines,
        place,
        roles=roles,
        volume_gb=volume_gb,
        compares_types=any(pipeline.read(ProjectSettings).retry_oom_on_larger for pipeline in pipelines),
    )
    mlflow = mlflow_access(pipelines, place)
    rules = [rule for pipeline in folder.pipelines if (rule := pipeline.deployment_rule()) is not None]
    deployments = target_access([*(rule.block.target for rule in rules), *targets], place)
    permissions = (*policy.permissions, *mlflow.permissions, *deployments)
    return replace(policy, permissions=permissions, notes=(*policy.notes, *mlflow.notes))


def iam_policy(
    machines: Sequence[MachineSettings],
    place: Place,
    *,
    roles: Sequence[str] = (),
    volume_gb: int | None = None,
    compares_types: bool = False,
) -> IamPolicy:
    """The tightest policy that fits all these machines.

    Args:
        machines: at least one.
        place: where they are.
        roles: of the instance profiles; default: named like these, as the AWS console makes them.
        volume_gb: the largest volume of an instance; default: ROOT_VOLUME_GB, else what we ask for at least.
        compares_types: as RETRY_OOM_ON_LARGER does.
    """
    deployments = _each(deployment_tag(machine.deployment)[Ec2Tag.DEPLOYMENT] for machine in machines)
    profiles = list(dict.fromkeys(machine.instance_profile for machine in machines if machine.instance_profile))
    subnets = _each(*(machine.subnets for machine in machines)) if all(each.subnets for each in machines) else []
    largest = volume_gb or max(disks(machine, {})[0]["Ebs"]["VolumeSize"] for machine in machines)
    owned = {"StringEquals": {_OWNED: deployments}}
    instances, volumes = place.ec2("instance", ["*"]), place.ec2("volume", ["*"])
    return IamPolicy(
        permissions=(
            *_looking(machines, place, compares_types=compares_types),
            Permission(
                "LaunchFrom",
                "instances start from these images, with these keys, in these networks",
                ["ec2:RunInstances"],
                [
                    *place.ec2("image", _each(machine.ami for machine in machines), owned=False),
                    *place.ec2("key-pair", _each(machine.key_pair for machine in machines)),
                    *place.ec2("security-group", _each(machine.security_group for machine in machines)),
                    *place.ec2("subnet", subnets or ["*"]),
                ],
            ),
            Permission(
                "LaunchInterface",
                "and have a network interface there",
                ["ec2:RunInstances"],
                place.ec2("network-interface", ["*"]),
                {"ArnEquals": {"ec2:Subnet": place.ec2("subnet", subnets)}} if subnets else {},
            ),
            Permission(
                "LaunchInstance",
                "of these types, as this installation's, with IMDSv2 only, and with no other role",
                ["ec2:RunInstances"],
                instances,
                {
                    "StringEquals": {
                        _OWNER: deployments,
                        "ec2:InstanceType": _each(*map(_types, machines)),
                        "ec2:MetadataHttpTokens": ["required"],
                        "ec2:Tenancy": ["default"],
                    },
                    **_profile_condition(machines, [place.iam("instance-profile", profile) for profile in profiles]),
                },
            ),
            Permission(
                "LaunchVolume",
                "on encrypted volumes of general purpose, no larger than needed, that are this installation's as well",
                ["ec2:RunInstances"],
                volumes,
                {
                    "StringEquals": {_OWNER: deployments, "ec2:VolumeType": ["gp2", "gp3"]},
                    "Bool": {"ec2:Encrypted": ["true"]},
                    "NumericLessThanEquals": {"ec2:VolumeSize": [str(largest)]},
                },
            ),
            Permission(
                "TagAtBirth",
                "whose an instance is, is said in the call that launches it, and never after",
                ["ec2:CreateTags"],
                [*instances, *volumes],
                {
                    "StringEquals": {"ec2:CreateAction": ["RunInstances"]},
                    "ForAllValues:StringEquals": {"aws:TagKeys": BIRTH_TAGS},
                },
            ),
            Permission(
                "RenewLease",
                "a living attempt says so on an instance of this installation, and a retry takes it over",
                ["ec2:CreateTags"],
                instances,
                {
                    **owned,
                    "ForAllValues:StringEquals": {"aws:TagKeys": ATTEMPT_TAGS},
                    "Null": {"aws:TagKeys": ["false"]},
                },
            ),
            Permission(
                "Terminate",
                "an instance of this installation is ended, and no other",
                ["ec2:TerminateInstances"],
                instances,
                owned,
            ),
            *_passing(profiles, roles, place),
        ),
        notes=tuple(_notes(machines, place, profiles=profiles, roles=roles, subnets=subnets, largest=largest)),
    )


def _types(machine: MachineSettings) -> list[str]:
    """All that a run may ask for, the launchpad's included."""
    return [*machine.instance_types, *machine.types_allowed]


def _looking(machines: Sequence[MachineSettings], place: Place, *, compares_types: bool) -> list[Permission]:
    unpriced = [machine for machine in machines if None in map(machine.known_price, _types(machine))]
    optional = {
        "ec2:DescribeInstanceStatus": any(machine.ready_when == "status-checks" for machine in machines),
        "ec2:DescribeInstanceTypes": compares_types,
        "ec2:DescribeSpotPriceHistory": any("spot" in machine.market for machine in unpriced),
        "ec2:DescribeSubnets": any(machine.address != "private" for machine in machines),
    }
    wanted = sorted(["ec2:DescribeImages", "ec2:DescribeInstances", *(name for name in optional if optional[name])])
    looking = [
        Permission(
            "Look",
            "instances, images and networks are looked at in this region",
            wanted,
            conditions={"StringEquals": {"ec2:Region": [place.region]}},
        )
    ]
    if any("on-demand" in machine.market for machine in unpriced):
        looking.append(Permission("PriceList", "what an hour costs, from AWS's price list", ["pricing:GetProducts"]))
    return looking


def _profile_condition(
    machines: Sequence[MachineSettings], profiles: Sequence[str]
) -> Mapping[str, Mapping[str, Sequence[str]]]:
    if not profiles:
        return {"Null": {"ec2:InstanceProfile": ["true"]}}
    always = all(machine.instance_profile for machine in machines)
    return {"ArnEquals" if always else "ArnEqualsIfExists": {"ec2:InstanceProfile": profiles}}


def _passing(profiles: Sequence[str], roles: Sequence[str], place: Place) -> list[Permission]:
    if not profiles:
        return []
    service = "ec2.amazonaws.com.cn" if place.partition == "aws-cn" else "ec2.amazonaws.com"
    return [
        Permission(
            "PassRole",
            "an instance gets the training's role, and nothing but an instance",
            ["iam:PassRole"],
            [place.iam("role", role) for role in roles or _named_like(profiles)],
            {"StringEquals": {"iam:PassedToService": [service]}},
        )
    ]


def _named_like(profiles: Sequence[str]) -> list[str]:
    return [profile.rsplit("/", 1)[-1] for profile in profiles]


def _notes(
    machines: Sequence[MachineSettings],
    place: Place,
    *,
    profiles: Sequence[str],
    roles: Sequence[str],
    subnets: Sequence[str],
    largest: int,
) -> Iterable[str]:
    if unnamed := [machine.deployment for machine in machines if "deployment" not in machine.model_fields_set]:
        yield (
            f"ORCHESTRATOR_DEPLOYMENT is not set: the policy is for an orchestrator on this host, {unnamed[0]}, and "
            "for no other"
        )
    if place.account == ACCOUNT:
        yield f"{ACCOUNT} stands for the number of the AWS account: give it with --account"
    if profiles and not roles:
        yield (
            f"the role in INSTANCE_PROFILE is taken to be named {', '.join(_named_like(profiles))}, as the AWS console "
            "makes it: name another one with --role"
        )
    if not subnets:
        yield "SUBNET_ID is not set, so that every subnet of the account is allowed: name those that are meant"
    yield f"volumes may have {largest} GB: where a disk of the image is larger, give its size with --volume-gb"


def _each(*groups: Iterable[str]) -> list[str]:
    """All of them in their order, none twice, each meaning itself."""
    return list(dict.fromkeys(literal(text) for group in groups for text in group))
