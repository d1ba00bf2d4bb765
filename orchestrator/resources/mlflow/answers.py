"""What MLflow tells about experiments, runs and metrics, as plain values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self, TypeVar, cast, get_args

from orchestrator.names import MlflowTag

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
FinalStatus = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")
_log = logging.getLogger(__name__)

_LATEST = 253_370_764_800_000
"""The beginning of the year 9999, in milliseconds: nobody can add to a later moment."""


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
        has_model: whether a model was logged to it.
        models: IDs of the models that MLflow 3 has among its outputs, the last logged one last.
        datasets: what it says that it has read.
        artifact_uri: where its artifacts are.
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
    has_model: bool = False
    models: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    artifact_uri: str = ""

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
        """Read the answer of https://mlflow.org/docs/latest/rest-api.html#get-run, without what is empty.

        A time that cannot be is not known; a parameter, metric or tag that cannot be is left out. Whoever may log to
        the server writes them.
        """
        info, data = answer["run"]["info"], answer["run"].get("data") or {}
        tags = _texts(data.get("tags"))
        return cls(
            id=str(info["run_id"]),
            name=str(info.get("run_name", "")),
            experiment_id=str(info["experiment_id"]),
            status=_status(info["status"]),
            start_time=_moment(info.get("start_time")),
            end_time=_moment(info.get("end_time")),
            params=_texts(data.get("params")),
            latest=dict(_each(data.get("metrics"), _latest_value, "a metric")),
            tags=tags,
            active=info.get("lifecycle_stage", "active") == "active",
            has_model=_has_model(answer["run"], tags),
            models=_models(answer["run"]),
            datasets=_datasets(answer["run"]),
            artifact_uri=str(info.get("artifact_uri", "")),
        )


def _has_model(run: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
    outputs = run.get("outputs")
    return MlflowTag.LOGGED_MODELS in tags or (isinstance(outputs, dict) and bool(outputs.get("model_outputs")))


def _models(run: Mapping[str, Any]) -> tuple[str, ...]:
    """In the order of their steps, as far as they say one."""
    outputs = run.get("outputs")
    listed = outputs.get("model_outputs") if isinstance(outputs, dict) else None
    found = _each(listed if isinstance(listed, list) else None, _model_output, "a model of a run")
    return tuple(model for _, model in sorted(found, key=lambda output: output[0]))


def _model_output(output: Mapping[str, Any]) -> tuple[int, str]:
    return int(output.get("step") or 0), str(output["model_id"])


def _datasets(run: Mapping[str, Any]) -> tuple[Dataset, ...]:
    inputs = run.get("inputs")
    listed = inputs.get("dataset_inputs") if isinstance(inputs, dict) else None
    return tuple(_each(listed if isinstance(listed, list) else None, Dataset.from_json, "a dataset of a run"))


@dataclass(frozen=True)
class Dataset:
    """What a run says that it has read.

    Attributes:
        context: what for, such as `training` or `eval`; empty when it does not say.
    """

    name: str
    digest: str
    context: str

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read https://mlflow.org/docs/latest/rest-api.html#datasetinput."""
        dataset = answer["dataset"]
        context = _texts(answer.get("tags")).get("mlflow.data.context", "")
        return cls(name=str(dataset["name"])[:200], digest=str(dataset["digest"])[:200], context=context[:200])


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        run_id: the run that its model was logged to; empty when it does not say.
        created_at: when it was registered.
    """

    model: str
    version: str
    run_id: str = ""
    created_at: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The version, to be compared."""
        return int(self.version)

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read https://mlflow.org/docs/latest/rest-api.html#modelversion."""
        return cls(
            model=str(answer["name"]),
            version=str(_version_number(answer["version"])),
            run_id=str(answer.get("run_id") or ""),
            created_at=_moment(answer.get("creation_timestamp")),
            tags=_texts(answer.get("tags")),
        )


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model.

    Attributes:
        aliases: alias → the version that it points to.
    """

    name: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        """Read https://mlflow.org/docs/latest/rest-api.html#registeredmodel."""
        model = answer["registered_model"]
        return cls(name=str(model["name"]), aliases=dict(_each(model.get("aliases"), _alias, "an alias of a model")))

    def aliases_of(self, version: ModelVersion) -> list[str]:
        """The aliases that point to a version."""
        return sorted(alias for alias, number in self.aliases.items() if number == version.version)


def _alias(alias: Mapping[str, Any]) -> tuple[str, str]:
    return str(alias["alias"]), str(_version_number(alias["version"]))


def _version_number(version: object) -> int:
    number = int(version) if isinstance(version, str | int) else 0
    if not 0 < number < 2**31:
        raise ValueError(f"a version {version!r:.50}")
    return number


def versions_page(answer: Mapping[str, Any]) -> list[ModelVersion]:
    """The versions in an answer of `model-versions/search`."""
    return list(_each(answer.get("model_versions"), ModelVersion.from_json, "a version of a model"))


def runs_page(answer: Mapping[str, Any]) -> tuple[list[Run], str]:
    """The runs in an answer of `runs/search`, and the token of the next page ("" on the last).

    Each for itself: one that cannot be read is named in a warning, and left out.
    """
    runs = _each(answer.get("runs"), lambda run: Run.from_json({"run": run}), "a run")
    return list(runs), _token(answer)


def experiments_page(answer: Mapping[str, Any]) -> tuple[list[str], str]:
    """The IDs in an answer of `experiments/search`, and the token of the next page ("" on the last)."""
    ids = _each(answer.get("experiments"), lambda experiment: str(experiment["experiment_id"]), "an experiment")
    return list(ids), _token(answer)


def points_page(answer: Mapping[str, Any]) -> tuple[list[MetricPoint], str]:
    """The points in an answer of `metrics/get-history`, and the token of the next page ("" on the last)."""
    return list(_each(answer.get("metrics"), MetricPoint.from_json, "a point of a metric")), _token(answer)


def key_values(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags or parameters as MLflow wants them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _each(items: object, read: Callable[[Any], T], noun: str) -> Iterator[T]:
    """Read the items of a list, each for itself; one warning counts those that cannot be read.

    Args:
        items: of an answer; MLflow leaves an empty list out.
        read: reads one.
        noun: what each of them is.

    Raises:
        TypeError: it is no list.
    """
    if items is None:
        return
    if not isinstance(items, list):
        raise TypeError(f"{type(items).__name__} in place of a list")
    faults: list[str] = []
    for item in items:
        try:
            yield read(item)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
            faults.append(f"{_name(item)} ({error!r:.200})")
    if faults:
        others = f", and {len(faults) - 3} others" if len(faults) > 3 else ""
        _log.warning(f"Left out {noun} of MLflow that cannot be read: {', '.join(faults[:3])}{others}")


def _name(item: object) -> str:
    """What an item calls itself: a run's ID, a tag's key."""
    fields = item if isinstance(item, dict) else {}
    info = fields.get("info")
    name = info.get("run_id") if isinstance(info, dict) else fields.get("key")
    return name[:100] if isinstance(name, str) else f"{item!r:.100}"


def _token(answer: Mapping[str, Any]) -> str:
    token = answer.get("next_page_token")
    return token if isinstance(token, str) else ""


def _latest_value(metric: Mapping[str, Any]) -> tuple[str, MetricPoint]:
    return str(metric["key"]), MetricPoint.from_json(metric)


def _texts(pairs: object) -> dict[str, str]:
    """Tags or parameters; MLflow leaves an empty value out."""
    return dict(_each(pairs, _text, "a tag or parameter"))


def _text(pair: Mapping[str, Any]) -> tuple[str, str]:
    return str(pair["key"]), str(pair.get("value", ""))


def _status(text: object) -> RunStatus:
    if text not in get_args(RunStatus):
        raise ValueError(f"a run whose status is {text!r}")
    return cast("RunStatus", text)


def _moment(milliseconds: object) -> datetime | None:
    """A time; None when there is none, or one that cannot be, such as in the year 285 million."""
    try:
        number = int(milliseconds) if isinstance(milliseconds, int | float | str) else 0
    except (ValueError, OverflowError):
        return None
    return datetime.fromtimestamp(number / 1000, UTC) if 0 < number <= _LATEST else None
