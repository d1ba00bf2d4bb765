"""The tags of instances and volumes: whose a machine is, in EC2's alphabet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from orchestrator.names import Ec2Tag

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import TagTypeDef

_LONGEST_VALUE = 256


def tag_value(text: str) -> str:
    """Make any text the value of a tag; one text always becomes the same value.

    EC2 takes any character and at most 256 of them, and not the prefix `aws:`
    (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions). In filters,
    `*`, `?` and the backslash have a meaning of their own, so they are not kept either. Where a text
    changes, a hash of it is added, so that two texts never become one value.
    """
    plain = re.sub(r"[*?\\\[\x00-\x1f\x7f]", "_", re.sub(r"^aws:", "aws_", text, flags=re.IGNORECASE))
    if plain == text and len(text) <= _LONGEST_VALUE:
        return text
    mark = "~" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return plain[: _LONGEST_VALUE - len(mark)] + mark


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC, to the second: how every time stands in a tag."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Owner:
    """For whom an instance runs, and until when.

    Attributes:
        pipeline: name of the pipeline.
        partition: key of the build's partition.
        dagster_run: ID of the Dagster run that uses the instance now.
        mlflow_run: ID of the MLflow run that the training fills.
        power_off_at: when the machine powers itself off; with a time zone.
        ssh_port: where its SSH server is to be reached.
    """

    pipeline: str
    partition: str
    dagster_run: str
    mlflow_run: str
    power_off_at: datetime
    ssh_port: int = 22

    def attempt_tags(self) -> dict[str, str]:
        """The tags that change when another attempt takes the instance over."""
        return {
            Ec2Tag.DAGSTER_RUN: tag_value(self.dagster_run),
            Ec2Tag.MLFLOW_RUN: tag_value(self.mlflow_run),
            Ec2Tag.EXPIRES_AT: timestamp(self.power_off_at),
        }


def deployment_tag(deployment: str) -> dict[str, str]:
    """The tag that says which installation owns an instance."""
    return {Ec2Tag.DEPLOYMENT: tag_value(deployment)}


def build_tags(*, deployment: str, pipeline: str, partition: str) -> dict[str, str]:
    """The tags that say whose instance it is; by them it is found again."""
    return {
        **deployment_tag(deployment),
        Ec2Tag.PIPELINE: tag_value(pipeline),
        Ec2Tag.PARTITION: tag_value(partition),
    }


def launch_tags(owner: Owner, *, deployment: str, host_key: str) -> dict[str, str]:
    """All tags of a new instance and its volumes."""
    return {
        Ec2Tag.NAME: tag_value(f"orchestrator {owner.pipeline} {owner.partition}"),
        **build_tags(deployment=deployment, pipeline=owner.pipeline, partition=owner.partition),
        **owner.attempt_tags(),
        Ec2Tag.HOST_KEY: host_key,
    }


def api_tags(tags: Mapping[str, str]) -> list[TagTypeDef]:
    """Tags in the API's form."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]
