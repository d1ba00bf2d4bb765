"""What a training that ended well has left, and what its instance was and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.names import MlflowTag
from orchestrator.resources.mlflow.answers import MetricPoint, ModelVersion, Run


@dataclass(frozen=True)
class Usage:
    """What the instance was, and what it cost.

    Attributes:
        minutes: from launch to termination.
        usd: price of these minutes; None when the hourly price is unknown.
    """

    instance_id: str
    instance_type: str
    market: str
    minutes: float
    usd: float | None

    def tags(self) -> dict[str, str]:
        """As MLflow tags, from which a later attempt reads it back."""
        tags = {
            MlflowTag.INSTANCE_ID: self.instance_id,
            MlflowTag.INSTANCE_TYPE: self.instance_type,
            MlflowTag.MARKET: self.market,
            MlflowTag.MINUTES: f"{self.minutes:.3f}",
        }
        if self.usd is not None:
            tags |= dict.fromkeys((MlflowTag.USD, MlflowTag.COST_USD), f"{self.usd:.6f}")
        return tags

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Usage | None:
        """Read `tags` back; None when the run has none."""
        if MlflowTag.MINUTES not in tags:
            return None
        return cls(
            instance_id=tags[MlflowTag.INSTANCE_ID],
            instance_type=tags[MlflowTag.INSTANCE_TYPE],
            market=tags[MlflowTag.MARKET],
            minutes=float(tags[MlflowTag.MINUTES]),
            usd=float(tags[MlflowTag.USD]) if MlflowTag.USD in tags else None,
        )


@dataclass(frozen=True)
class Registered:
    """A version of a registered model, and the run that it is of."""

    run: Run
    version: ModelVersion


@dataclass(frozen=True)
class FinishedTraining:
    """What MLflow holds of a training that ended well.

    Attributes:
        run: the MLflow run that holds the model.
        url: its page; None when it is not known where people find it.
        histories: metric → all its points.
        usage: what the instance was and cost; None when that was never written.
        root: the MLflow run that the training was given; has the parameters of the project.
        others: those that it made besides, in the order of their start.
        reason: why `run` is the model, and of how many, in one sentence.
        registered: what it put into the model registry.
    """

    run: Run
    url: str | None
    histories: Mapping[str, Sequence[MetricPoint]]
    usage: Usage | None
    root: Run
    others: Sequence[Run] = ()
    reason: str = ""
    registered: Sequence[Registered] = ()
