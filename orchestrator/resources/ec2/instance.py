"""An EC2 instance and its lease, as plain values, and the tags that carry them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

Market = Literal["on-demand", "spot"]

DEPLOYMENT_TAG = "orchestrator:deployment"
PIPELINE_TAG = "orchestrator:pipeline"
PARTITION_TAG = "orchestrator:partition"
DAGSTER_RUN_TAG = "orchestrator:dagster-run"
MLFLOW_RUN_TAG = "orchestrator:mlflow-run"
EXPIRES_AT_TAG = "orchestrator:expires-at"
HOST_KEY_TAG = "orchestrator:host-key"
LEASE_UNTIL_TAG = "orchestrator:lease-until"

ALIVE = ("pending", "running")
NOT_GONE = (*ALIVE, "stopping", "stopped")

_LONGEST_TAG_VALUE = 256

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
_ENDINGS = {
    "Server.SpotInstanceTermination": "AWS took the spot instance back",
    "Server.SpotInstanceShutdown": "AWS took the spot instance back",
    "Server.InsufficientInstanceCapacity": "AWS had no capacity to start it",
    "Server.InternalError": "AWS had an internal error while starting it",
    "Server.ScheduledStop": "AWS stopped it for scheduled maintenance",
    "Client.UserInitiatedShutdown": "somebody terminated or stopped it through AWS's API",
    "Client.InstanceInitiatedShutdown": "it was shut down from within: its deadline, or a shutdown command",
    "Client.InstanceTerminated": "it was shut down while it started",
    "Client.InternalError": "it could not start, most often because its encrypted volume's KMS key is refused to us",
    "Client.InvalidSnapshot.NotFound": "the snapshot of its image is gone: set AMI_ID",
    "Client.VolumeLimitExceeded": "the account's quota for EBS volumes is used up: delete volumes or raise it",
}


def tag_value(text: str) -> str:
    """Make any text the value of a tag; one text always becomes the same value.

    EC2 takes any character and at most 256 of them, and not the prefix `aws:`
    (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions). In filters,
    `*`, `?` and the backslash have a meaning of their own, so they are not kept either. Where a text
    changes, a hash of it is added, so that two texts never become one value.
    """
    plain = re.sub(r"[*?\\\[\x00-\x1f\x7f]", "_", re.sub(r"^aws:", "aws_", text, flags=re.IGNORECASE))
    if plain == text and len(text) <= _LONGEST_TAG_VALUE:
        return text
    mark = "~" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return plain[: _LONGEST_TAG_VALUE - len(mark)] + mark


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second: how every time stands in a tag."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Lease:
    """For whom an instance runs, and until when.

    Attributes:
        pipeline: name of the pipeline.
        partition: key of the build's partition.
        dagster_run: ID of the Dagster run that uses the instance now.
        mlflow_run: ID of the MLflow run that the training fills.
        expires_at: when the machine powers itself off; with a time zone.
    """

    pipeline: str
    partition: str
    dagster_run: str
    mlflow_run: str
    expires_at: datetime

    def attempt_tags(self) -> dict[str, str]:
        """The tags that change when another attempt takes the instance over."""
        return {
            DAGSTER_RUN_TAG: tag_value(self.dagster_run),
            MLFLOW_RUN_TAG: tag_value(self.mlflow_run),
            EXPIRES_AT_TAG: timestamp(self.expires_at),
        }


def deployment_tag(deployment: str) -> dict[str, str]:
    """The tag that says which installation owns an instance."""
    return {DEPLOYMENT_TAG: tag_value(deployment)}


def build_tags(*, deployment: str, pipeline: str, partition: str) -> dict[str, str]:
    """The tags that say whose instance it is; by them it is found again."""
    return {
        **deployment_tag(deployment),
        PIPELINE_TAG: tag_value(pipeline),
        PARTITION_TAG: tag_value(partition),
    }


def launch_tags(lease: Lease, *, deployment: str, host_key: str) -> dict[str, str]:
    """All tags of a new instance and its volumes."""
    return {
        "Name": tag_value(f"orchestrator {lease.pipeline} {lease.partition}"),
        **build_tags(deployment=deployment, pipeline=lease.pipeline, partition=lease.partition),
        **lease.attempt_tags(),
        HOST_KEY_TAG: host_key,
    }


@dataclass(frozen=True)
class Instance:
    """What EC2 says of one instance.

    Attributes:
        id: such as `i-0123456789abcdef0`.
        state: pending, running, shutting-down, terminated, stopping or stopped.
        type: such as `t3.medium`.
        market: whether it can be taken back by AWS (spot) or not.
        zone: its availability zone.
        address: where we connect to, as INSTANCE_ADDRESS says; None while there is none.
        launched_at: in UTC.
        tags: all of them, ours and others.
        state_reason: why it ended, in plain words; None while it is alive.
    """

    id: str
    state: str
    type: str
    market: Market
    zone: str | None
    address: str | None
    launched_at: datetime
    tags: Mapping[str, str] = field(default_factory=dict)
    state_reason: str | None = None

    @classmethod
    def from_api(cls, raw: InstanceTypeDef, *, address: Literal["auto", "public", "private"]) -> Self:
        """Read one instance of a DescribeInstances or RunInstances answer.

        Args:
            raw: the part of the answer.
            address: which of its addresses is ours to use; auto: the public one if there is one.
        """
        state = raw["State"]["Name"]
        public, private = raw.get("PublicIpAddress"), raw.get("PrivateIpAddress")
        reason = raw.get("StateReason", {})
        return cls(
            id=raw["InstanceId"],
            state=state,
            type=raw["InstanceType"],
            market="spot" if raw.get("InstanceLifecycle") == "spot" else "on-demand",
            zone=raw.get("Placement", {}).get("AvailabilityZone"),
            address={"public": public, "private": private, "auto": public or private}[address] or None,
            launched_at=raw["LaunchTime"].astimezone(UTC),
            tags={tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])},
            state_reason=None
            if state in ALIVE
            else _why_ended(
                code=reason.get("Code", ""),
                said=reason.get("Message") or raw.get("StateTransitionReason", ""),
            ),
        )

    @property
    def alive(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in ALIVE

    @property
    def host_key(self) -> str | None:
        """The public host key that was planted in it, `ssh-ed25519 AAAA...`."""
        return self.tags.get(HOST_KEY_TAG)

    @property
    def deployment(self) -> str:
        """The installation that owns it; empty when it is not one of ours."""
        return self.tags.get(DEPLOYMENT_TAG, "")

    @property
    def pipeline(self) -> str:
        """The pipeline that it was launched for, as `tag_value` wrote it."""
        return self.tags.get(PIPELINE_TAG, "")

    @property
    def partition(self) -> str:
        """The partition that it was launched for, as `tag_value` wrote it."""
        return self.tags.get(PARTITION_TAG, "")

    @property
    def dagster_run(self) -> str:
        """The Dagster run that used it last."""
        return self.tags.get(DAGSTER_RUN_TAG, "")

    @property
    def mlflow_run(self) -> str:
        """The MLflow run that its training fills."""
        return self.tags.get(MLFLOW_RUN_TAG, "")

    @property
    def expires_at(self) -> datetime | None:
        """When it powers itself off."""
        return self.moment(EXPIRES_AT_TAG)

    @property
    def lease_until(self) -> datetime | None:
        """Until when its attempt counts as alive without being heard of."""
        return self.moment(LEASE_UNTIL_TAG)

    def moment(self, tag: str) -> datetime | None:
        """The time in one tag; None when it is missing or no time with a zone."""
        try:
            moment = datetime.fromisoformat(self.tags.get(tag, ""))
        except ValueError:
            return None
        return moment.astimezone(UTC) if moment.tzinfo else None


def _why_ended(*, code: str, said: str) -> str:
    """In plain words, where AWS's code is a known one; else in AWS's own."""
    known = _ENDINGS.get(code)
    return f"{known} ({code})" if known else said or "AWS does not say why"
