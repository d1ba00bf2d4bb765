"""What a statement of an IAM policy is made of: actions, the names of AWS's resources, and conditions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError

from orchestrator.errors import SettingsError
from orchestrator.settings.variables import hand_aws_to_boto3

ACCOUNT = "ACCOUNT"
"""Stands in the policy where the AWS account's number is not known."""


@dataclass(frozen=True)
class Permission:
    """One statement that allows something, and what it is for."""

    sid: str
    why: str
    actions: Sequence[str]
    resources: Sequence[str] = ("*",)
    conditions: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def statement(self) -> dict[str, Any]:
        """It in IAM's words; a list of one is that one."""
        conditions = {
            operator: {key: _brief(values) for key, values in keys.items()}
            for operator, keys in self.conditions.items()
            if keys
        }
        return {
            "Sid": self.sid,
            "Effect": "Allow",
            "Action": _brief(self.actions),
            "Resource": _brief(self.resources),
            **({"Condition": conditions} if conditions else {}),
        }


@dataclass(frozen=True)
class Place:
    """Where the instances are.

    Attributes:
        partition: `aws`, or that of China or of the US government.
        account: its number; `ACCOUNT` where it is not known.
    """

    partition: str
    region: str
    account: str

    @classmethod
    def present(cls, account: str | None) -> Place:
        """The region that boto3 works in.

        Raises:
            SettingsError: there is none, or boto3 does not know it.
        """
        hand_aws_to_boto3()
        try:
            session = boto3.session.Session()
            if not (region := session.region_name):
                raise SettingsError("there is no AWS region to make a policy for: set AWS_DEFAULT_REGION")
            return cls(session.get_partition_for_region(region), region, account or ACCOUNT)
        except BotoCoreError as error:
            raise SettingsError(f"the AWS region cannot be told ({error}): correct AWS_DEFAULT_REGION") from error

    def ec2(self, kind: str, names: Iterable[str], *, owned: bool = True) -> list[str]:
        """ARNs of resources of EC2; images belong to no account."""
        account = self.account if owned else ""
        return [f"arn:{self.partition}:ec2:{self.region}:{account}:{kind}/{name}" for name in names]

    def iam(self, kind: str, name: str) -> str:
        """The ARN of a role or an instance profile, which may be given as one."""
        return literal(name if name.startswith("arn:") else f"arn:{self.partition}:iam::{self.account}:{kind}/{name}")


def literal(text: str) -> str:
    """Text in a policy that means itself: `*`, `?` and `${` have a meaning there.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html
    """
    return re.sub(r"[*?$]", r"${\g<0>}", text)


def _brief(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)
