"""An EC2 instance as a plain value, read from an answer of AWS."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Self

from orchestrator.names import Ec2Tag

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

Market = Literal["on-demand", "spot"]

ALIVE = ("pending", "running")
NOT_GONE = (*ALIVE, "stopping", "stopped")

# What starts with Client. and says nothing of whether it could start.
_ENDED_BY_SOMEBODY = (
    "Client.UserInitiatedShutdown",
    "Client.UserInitiatedHibernate",
    "Client.InstanceInitiatedShutdown",
    "Client.InstanceTerminated",
)

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
    "Client.InternalError": "it could not start, most often because the KMS key of its encrypted volume is refused to "
    "us: allow what docs/aws.md says about KMS",
    "Client.InvalidSnapshot.NotFound": "the snapshot of its image is gone: set AMI_ID",
    "Client.VolumeLimitExceeded": "the account's quota for EBS volumes is used up: delete volumes or raise it",
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
        state_code: AWS's code for that; empty while it is alive, and where AWS gives none.
        public: whether it has a public address, whichever is ours to use.
        subnet: where it is; empty where AWS does not say.
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
    state_code: str = ""
    public: bool = False
    subnet: str = ""

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
            tags={tag["Key"]: tag.get("Value") or "" for tag in raw.get("Tags") or () if tag.get("Key")},
            state_reason=None
            if state in ALIVE
            else _why_ended(
                code=reason.get("Code", ""),
                message=reason.get("Message") or raw.get("StateTransitionReason", ""),
            ),
            state_code="" if state in ALIVE else reason.get("Code") or "",
            public=bool(public),
            subnet=raw.get("SubnetId") or "",
        )

    @property
    def alive(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in ALIVE

    @property
    def refused_to_start(self) -> bool:
        """Whether AWS could not start it for a reason on our side, which another launch would meet again."""
        return self.state_code.startswith("Client.") and self.state_code not in _ENDED_BY_SOMEBODY

    @property
    def host_key(self) -> str | None:
        """The public host key that was planted in it, `ssh-ed25519 AAAA...`."""
        return self.tags.get(Ec2Tag.HOST_KEY)

    @property
    def deployment(self) -> str:
        """The installation that owns it; empty when it is not one of ours."""
        return self.tags.get(Ec2Tag.DEPLOYMENT, "")

    @property
    def pipeline(self) -> str:
        """The pipeline that it was launched for, as `tag_value` wrote it."""
        return self.tags.get(Ec2Tag.PIPELINE, "")

    @property
    def partition(self) -> str:
        """The partition that it was launched for, as `tag_value` wrote it."""
        return self.tags.get(Ec2Tag.PARTITION, "")

    @property
    def dagster_run(self) -> str:
        """The Dagster run that used it last."""
        return self.tags.get(Ec2Tag.DAGSTER_RUN, "")

    @property
    def mlflow_run(self) -> str:
        """The MLflow run that its training fills."""
        return self.tags.get(Ec2Tag.MLFLOW_RUN, "")

    @property
    def power_off_at(self) -> datetime | None:
        """When it powers itself off."""
        return self.moment(Ec2Tag.EXPIRES_AT)

    @property
    def lease_until(self) -> datetime | None:
        """Until when its attempt counts as alive without being heard of."""
        return self.moment(Ec2Tag.LEASE_UNTIL)

    def moment(self, tag: str) -> datetime | None:
        """The time in one tag; None when it is missing or no time with a zone."""
        try:
            moment = datetime.fromisoformat(self.tags.get(tag, ""))
            return moment.astimezone(UTC) if moment.tzinfo else None
        except (ValueError, OverflowError):  # the latter: the year 1 or 9999, in another zone
            return None


def fingerprint(host_key: str | None) -> str:
    """The fingerprint of a public key `ssh-ed25519 AAAA...`, as `ssh-keygen -l` shows it; empty when it is none."""
    try:
        _, encoded, *_ = (host_key or "").split()
        digest = hashlib.sha256(base64.b64decode(encoded, validate=True)).digest()
    except (ValueError, binascii.Error):
        return ""
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _why_ended(*, code: str, message: str) -> str:
    """In plain words, where AWS's code is a known one; else in AWS's own."""
    known = _ENDINGS.get(code)
    return f"{known} ({code})" if known else message or "AWS does not say why"
