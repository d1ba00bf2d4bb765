"""How a training ended: what it left and cost when it went well, and why it failed when it did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import TrainingError, TrainingFailed, TrainingLost, TrainingTimedOut
from orchestrator.remote.outcome import Outcome
from orchestrator.resources.mlflow.answers import MetricPoint, Run


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
            "ec2.instance_id": self.instance_id,
            "ec2.instance_type": self.instance_type,
            "ec2.market": self.market,
            "ec2.minutes": f"{self.minutes:.3f}",
        }
        return tags if self.usd is None else {**tags, "ec2.usd": f"{self.usd:.6f}"}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Usage | None:
        """Read :meth:`tags` back; None when the run has none."""
        if "ec2.minutes" not in tags:
            return None
        return cls(
            instance_id=tags["ec2.instance_id"],
            instance_type=tags["ec2.instance_type"],
            market=tags["ec2.market"],
            minutes=float(tags["ec2.minutes"]),
            usd=float(tags["ec2.usd"]) if "ec2.usd" in tags else None,
        )


@dataclass(frozen=True)
class FinishedTraining:
    """What MLflow holds of a training that ended well.

    Attributes:
        run: the MLflow run.
        url: its page.
        histories: metric → all its points.
        usage: what the instance was and cost; None when that was never written.
    """

    run: Run
    url: str
    histories: Mapping[str, Sequence[MetricPoint]]
    usage: Usage | None


def failure(what: str, outcome: Outcome, last_lines: Sequence[str]) -> TrainingError:
    """The error for a training that did not end with status 0.

    Args:
        what: the build.
        outcome: how it ended.
        last_lines: of its output, masked.
    """
    cause = cause_of_failure(last_lines)
    because = f" ({cause})" if cause else ""
    tail = "; the last lines of its output:\n" + "\n".join(last_lines) if last_lines else "; it printed nothing"
    kinds = {"deadline": TrainingTimedOut, "lost": TrainingLost}
    return kinds.get(outcome.kind, TrainingFailed)(f"{what}: {outcome.describe()}{because}{tail}")


def cause_of_failure(lines: Sequence[str]) -> str | None:
    """The line of a training's output that says best why it failed: Python's or mlflow's last error line."""
    for line in reversed(lines):
        head, colon, rest = line.strip().strip("= ").partition(": ")
        word = head.rpartition(".")[2]
        if colon and rest and word.isidentifier() and word.endswith(("Error", "Exception", "Interrupt")):
            return line.strip()
    for line in reversed(lines):
        if "ERROR mlflow" in line and "===" in line:
            return line.split("===")[1].strip()
    return None
