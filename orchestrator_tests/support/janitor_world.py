"""Short ways to write down instances, MLflow runs and Dagster runs; for tests of the janitor's rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from orchestrator.janitor.snapshot import BuildKey, OpenRun, Snapshot, TrainingRun
from orchestrator.names import Ec2Tag
from orchestrator.resources.ec2 import Instance, build_tags, timestamp

NOW = datetime(2031, 5, 17, 8, 30, tzinfo=UTC)


def ago(*, minutes: float = 0, seconds: float = 0) -> datetime:
    return NOW - timedelta(minutes=minutes, seconds=seconds)


HALF_AN_HOUR_AGO = ago(minutes=30)


def instance(
    owner: str = "run-1",
    *,
    partition: str = "7",
    deployment: str = "ours",
    launched_at: datetime = HALF_AN_HOUR_AGO,
    lease_until: datetime | None = None,
    mlflow_run: str = "m-1",
    pipeline: str = "iris",
    power_off_at: datetime | None = None,
    id: str = "i-1",
    state: str = "running",
) -> Instance:
    tags = build_tags(deployment=deployment, pipeline=pipeline, partition=partition)
    tags |= {Ec2Tag.DAGSTER_RUN: owner, Ec2Tag.MLFLOW_RUN: mlflow_run}
    if power_off_at:
        tags[Ec2Tag.EXPIRES_AT] = timestamp(power_off_at)
    if lease_until:
        tags[Ec2Tag.LEASE_UNTIL] = timestamp(lease_until)
    return Instance(
        id=id,
        state=state,
        type="t3.medium",
        market="on-demand",
        zone=None,
        address=None,
        launched_at=launched_at,
        tags=tags,
    )


def run(status: str, id: str = "run-1", **more: Any) -> TrainingRun:
    values: dict[str, Any] = {"pipelines": frozenset({"iris"}), "partition": "7", "started_at": HALF_AN_HOUR_AGO}
    status_ = dg.DagsterRunStatus(status)
    return TrainingRun(id=id, status=status_, **{**values, **more})


def open_run(owner: str = "run-1", id: str = "m-1", **more: Any) -> OpenRun:
    values: dict[str, Any] = {"partition": "7", "deployment": "ours", "started_at": HALF_AN_HOUR_AGO}
    return OpenRun(id=id, pipeline="iris", dagster_run=owner, **{**values, **more})


def world(*parts: Instance | TrainingRun | OpenRun, **more: Any) -> Snapshot:
    values: dict[str, Any] = {
        "deployments": frozenset({"ours"}),
        "pipelines": frozenset({"iris", "fraud"}),
        "instances_known": True,
        "watching_since": ago(minutes=600),
    }
    return Snapshot(
        instances=tuple(part for part in parts if isinstance(part, Instance)),
        open_runs=tuple(part for part in parts if isinstance(part, OpenRun)),
        runs=tuple(part for part in parts if isinstance(part, TrainingRun)),
        **{**values, **more},
    )


def build_of(one: Instance) -> BuildKey:
    return BuildKey(one.pipeline, one.partition)
