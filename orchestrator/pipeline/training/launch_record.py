"""What a Dagster run keeps of the instance that it launched: that one's own tags can be copied and changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from orchestrator.names import RunTag
from orchestrator.resources.ec2 import Instance, fingerprint, tag_value, timestamp
from orchestrator.settings.groups import LONGEST_MINUTES


@dataclass(frozen=True, kw_only=True)
class LaunchRecord:
    """One launch, as it stands in the tags of the Dagster run.

    Attributes:
        instance_id: as AWS answered.
        host_key: the fingerprint of the key that was planted.
        mlflow_run: what the training fills.
        expires_at: when the machine powers itself off.
        max_minutes: what the training was given; None: unknown.
    """

    instance_id: str
    host_key: str
    mlflow_run: str
    expires_at: datetime
    max_minutes: float | None = None

    def tags(self) -> dict[str, str]:
        """As tags of the Dagster run."""
        tags = {
            RunTag.INSTANCE: self.instance_id,
            RunTag.HOST_KEY: self.host_key,
            RunTag.MLFLOW_RUN: self.mlflow_run,
            RunTag.EXPIRES_AT: timestamp(self.expires_at),
        }
        return tags if self.max_minutes is None else {**tags, RunTag.MAX_MINUTES: f"{self.max_minutes:.10g}"}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read `tags` back; None when the run has none, or something else there."""
        try:
            expires_at = datetime.fromisoformat(tags[RunTag.EXPIRES_AT]).astimezone(UTC)
            minutes = float(tags[RunTag.MAX_MINUTES]) if RunTag.MAX_MINUTES in tags else math.nan
            return cls(
                instance_id=tags[RunTag.INSTANCE],
                host_key=tags[RunTag.HOST_KEY],
                mlflow_run=tags[RunTag.MLFLOW_RUN],
                expires_at=expires_at,
                max_minutes=minutes if 0 < minutes <= LONGEST_MINUTES else None,
            )
        except (KeyError, ValueError, OverflowError):
            return None

    def agrees_with(self, instance: Instance) -> bool:
        """Whether this instance is that one, by its own tags, too."""
        return (
            instance.id == self.instance_id
            and fingerprint(instance.host_key) == self.host_key
            and instance.mlflow_run == tag_value(self.mlflow_run)
        )
