"""What MLflow tells about experiments, runs and metrics, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self, cast, get_args

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: what runs are filed under."""

    id: str
    name: str
    active: bool

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer of https://mlflow.org/docs/latest/rest-api.html#get-experiment."""
        experiment = answer["experiment"]
        return cls(
            id=str(experiment["experiment_id"]),
            name=str(experiment["name"]),
            active=experiment.get("lifecycle_stage", "active") == "active",
        )


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric.

    Attributes:
        value: may be NaN; MLflow's databases store the infinities as the largest floats.
        step: the training's own count, such as the epoch.
        timestamp: milliseconds since the epoch.
    """

    value: float
    step: int
    timestamp: int

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read https://mlflow.org/docs/latest/rest-api.html#metric, where NaN and infinity are strings."""
        return cls(
            value=float(answer["value"]),
            step=int(answer.get("step", 0)),
            timestamp=int(answer.get("timestamp", 0)),
        )


@dataclass(frozen=True)
class Run:
    """A run: parameters, metrics and artifacts of one training.

    Attributes:
        latest: each metric's value at its highest step.
        active: False once somebody deleted it.
    """

    id: str
    name: str
    experiment_id: str
    status: RunStatus
    start_time: datetime | None
    end_time: datetime | None
    params: Mapping[str, str]
    latest: Mapping[str, MetricPoint]
    tags: Mapping[str, str]
    active: bool

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric's value at its highest step."""
        return {key: point.value for key, point in self.latest.items()}

    @property
    def ended(self) -> bool:
        """Whether the run is FINISHED, FAILED or KILLED."""
        return self.status in ("FINISHED", "FAILED", "KILLED")

    def has(self, tags: Mapping[str, str]) -> bool:
        """Whether it carries all these tags with exactly these values."""
        return tags.items() <= self.tags.items()

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read the answer of https://mlflow.org/docs/latest/rest-api.html#get-run, without what is empty."""
        info, data = answer["run"]["info"], answer["run"].get("data", {})
        return cls(
            id=str(info["run_id"]),
            name=str(info.get("run_name", "")),
            experiment_id=str(info["experiment_id"]),
            status=_status(info["status"]),
            start_time=_moment(info.get("start_time")),
            end_time=_moment(info.get("end_time")),
            params=_texts(data.get("params", [])),
            latest={str(metric["key"]): MetricPoint.from_json(metric) for metric in data.get("metrics", [])},
            tags=_texts(data.get("tags", [])),
            active=info.get("lifecycle_stage", "active") == "active",
        )


def runs_page(answer: Mapping[str, Any]) -> tuple[list[Run], str]:
    """The runs in an answer of `runs/search`, and the token of the next page ("" on the last)."""
    return [Run.from_json({"run": run}) for run in answer.get("runs", [])], str(answer.get("next_page_token", ""))


def points_page(answer: Mapping[str, Any]) -> tuple[list[MetricPoint], str]:
    """The points in an answer of `metrics/get-history`, and the token of the next page ("" on the last)."""
    points = [MetricPoint.from_json(point) for point in answer.get("metrics", [])]
    return points, str(answer.get("next_page_token", ""))


def key_values(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags or parameters as MLflow wants them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _texts(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Tags or parameters; MLflow leaves an empty value out."""
    return {str(pair["key"]): str(pair.get("value", "")) for pair in pairs}


def _status(text: object) -> RunStatus:
    if text not in get_args(RunStatus):
        raise ValueError(f"a run whose status is {text!r}")
    return cast("RunStatus", text)


def _moment(milliseconds: int | str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None
