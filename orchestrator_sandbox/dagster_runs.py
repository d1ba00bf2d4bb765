"""A Dagster run and its steps, as the webserver's GraphQL describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.names import DagsterTag

OVER = frozenset({"SUCCESS", "FAILURE", "CANCELED"})

RUN_FIELDS = """
    runId status jobName startTime endTime tags { key value } assetSelection { path }
    stepStats { stepKey status startTime endTime }
"""
"""The fields of a run that `run_of` reads."""


@dataclass(frozen=True)
class RunStep:
    """One step of a run.

    Attributes:
        name: last part of the step's key, such as `train`.
        status: IN_PROGRESS, SUCCESS, FAILURE or SKIPPED.
        seconds: how long it took; None while it runs.
        started: seconds since the epoch.
    """

    name: str
    status: str
    started: float | None
    seconds: float | None


@dataclass(frozen=True)
class RunSummary:
    """One Dagster run.

    Attributes:
        pipeline: the pipeline whose assets it makes; None: it makes none, as a job of the janitor's.
        started: seconds since the epoch; None while it is queued.
        ended: seconds since the epoch; None while it runs.
    """

    id: str
    status: str
    job: str
    pipeline: str | None
    partition: str | None
    started: float | None
    ended: float | None
    steps: tuple[RunStep, ...]

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in OVER


def run_of(answer: Mapping[str, Any]) -> RunSummary:
    """Make a run of the fields in `RUN_FIELDS`."""
    tags = {tag["key"]: tag["value"] for tag in answer["tags"]}
    return RunSummary(
        id=answer["runId"],
        status=answer["status"],
        job=answer["jobName"],
        pipeline=_pipeline(answer),
        partition=tags.get(DagsterTag.PARTITION),
        started=answer["startTime"],
        ended=answer["endTime"],
        steps=tuple(_step(step) for step in answer["stepStats"]),
    )


def _pipeline(answer: Mapping[str, Any]) -> str | None:
    """The first part of its assets' keys; a run of a whole job names the job only."""
    if answer["assetSelection"]:
        return str(answer["assetSelection"][0]["path"][0])
    name, _, kind = answer["jobName"].rpartition("_")
    return name if kind == "training" else None


def _step(answer: Mapping[str, Any]) -> RunStep:
    started, ended = answer["startTime"], answer["endTime"]
    return RunStep(
        name=answer["stepKey"].rpartition(".")[2],
        status=answer["status"] or "IN_PROGRESS",
        started=started,
        seconds=ended - started if started is not None and ended is not None else None,
    )
