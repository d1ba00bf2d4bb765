"""Whom the janitor asks besides Dagster: EC2 and MLflow of all pipelines of the code location."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Generic, Literal, TypeVar

from orchestrator import names
from orchestrator.errors import Ec2Error, MlflowError, SettingsError
from orchestrator.janitor.snapshot import OpenRun
from orchestrator.pipeline.watched import WatchedPipelines
from orchestrator.resources import retry
from orchestrator.resources.ec2 import NOT_GONE, Ec2, Instance, tag_value
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.settings.groups import Group, MachineSettings, MlflowSettings, env_name
from orchestrator.settings.source import SettingsSource

T = TypeVar("T")

MOST_LOOKED_AT = 20
"""Instances that are looked at one by one in a tick: those that are late, and that do not bear our tags any more."""

THREADS = "janitor"
"""How the names of the janitor's threads begin."""


@dataclass(frozen=True)
class JanitorPipeline:
    """What the janitor needs of one pipeline; None where its settings cannot be used."""

    name: str
    machine: MachineSettings | None
    mlflow: MlflowSettings | None


@dataclass(frozen=True)
class Findings(Generic[T]):
    """What was found where all were asked at once.

    Attributes:
        found: what those that answered have.
        faults: a sentence for each that did not.
        asked: how many were asked.
    """

    found: tuple[T, ...] = ()
    faults: tuple[str, ...] = ()
    asked: int = 0


def read_pipelines(watched: WatchedPipelines) -> tuple[list[JanitorPipeline], list[str]]:
    """Read what can be read; each fault is one sentence."""
    pipelines: list[JanitorPipeline] = []
    faults: list[str] = []

    def read(settings: SettingsSource, group: type[Group]) -> Group | None:
        try:
            return settings.read(group)
        except SettingsError as error:
            faults.append(str(error))
            return None

    for settings in watched.settings:
        machine, mlflow = read(settings, MachineSettings), read(settings, MlflowSettings)
        pipelines.append(JanitorPipeline(settings.pipeline, machine=machine, mlflow=mlflow))
    return pipelines, faults


def machine_of_environment() -> MachineSettings:
    """The machine as the environment alone has it; enough to find and to end instances, not to launch one.

    Raises:
        SettingsError: a setting of the environment is wrong.
    """
    fields = MachineSettings.model_fields.values()
    needed_to_launch = {env_name(field): "unknown" for field in fields if field.is_required()}
    return SettingsSource(values=needed_to_launch).read(MachineSettings)


class Clients:
    """EC2 and MLflow of all pipelines: one EC2 client per deployment, one MLflow client per login.

    Region and credentials are boto3's own and the same for all pipelines of a code location.

    Args:
        pipelines: whose EC2 and MLflow.
        machines: of further deployments that may hold instances of ours.
    """

    def __init__(self, pipelines: Sequence[JanitorPipeline], machines: Collection[MachineSettings] = ()) -> None:
        self._pipelines = pipelines
        known = [*machines, *(pipeline.machine for pipeline in pipelines if pipeline.machine)]
        self._ec2 = {tag_value(machine.deployment): Ec2(machine, policy=retry.JANITOR_EC2) for machine in known}
        self._mlflow: dict[MlflowSettings, Mlflow] = {}

    @property
    def deployments(self) -> frozenset[str]:
        """The names of this installation, as they stand in tags."""
        return frozenset(self._ec2)

    def ec2(self, instance: Instance) -> Ec2:
        """The client that found this instance; any, for one that does not bear our tags any more."""
        return self._ec2.get(instance.deployment) or next(iter(self._ec2.values()))

    def mlflow(self, pipeline: str) -> Mlflow:
        """The client of a pipeline.

        Raises:
            SettingsError: its address or certificate is wrong.
        """
        settings = next(one.mlflow for one in self._pipelines if one.name == pipeline and one.mlflow)
        if settings not in self._mlflow:
            self._mlflow[settings] = Mlflow(settings, policy=retry.JANITOR_MLFLOW)
        return self._mlflow[settings]

    def close(self) -> None:
        """Close the connections."""
        for mlflow in self._mlflow.values():
            mlflow.close()

    def instances(self) -> Findings[Instance]:
        """All instances that still cost money."""
        return _ask([ec2.find_all for ec2 in self._ec2.values()])

    def disguised(self, ids: Collection[str]) -> Findings[Instance]:
        """Those of these instances that still cost money, whatever tags they bear."""
        ec2 = next(iter(self._ec2.values()), None)
        if ec2 is None or not ids:
            return Findings()
        looked_at = _ask([partial(_look, ec2, instance_id) for instance_id in sorted(ids)[:MOST_LOOKED_AT]])
        return replace(looked_at, found=tuple(found for found in looked_at.found if found.state in NOT_GONE))

    def open_runs(self) -> Findings[OpenRun]:
        """All MLflow runs that are RUNNING and carry our tags."""
        recorded = [pipeline for pipeline in self._pipelines if pipeline.mlflow]
        return _ask([partial(self._open_runs, pipeline) for pipeline in recorded])

    def _open_runs(self, pipeline: JanitorPipeline) -> list[OpenRun]:
        settings = pipeline.mlflow
        if settings is None:
            return []
        ours, server = {names.MlflowTag.PIPELINE: pipeline.name}, self.mlflow(pipeline.name)
        found: list[tuple[Run, Literal["FAILED", "KILLED"] | None]] = [
            (run, None) for run in server.find_runs(settings.experiment_id, tags=ours, statuses={"RUNNING"})
        ]
        ends: tuple[Literal["FAILED", "KILLED"], ...] = ("FAILED", "KILLED")
        for end in ends:
            tags = {**ours, names.MlflowTag.ENDED_AS: end}
            found += [(run, end) for run in server.find_runs(settings.experiment_id, tags=tags, statuses={"FINISHED"})]
        return [
            OpenRun(
                id=run.id,
                pipeline=pipeline.name,
                partition=run.tags.get(names.MlflowTag.PARTITION, ""),
                deployment=run.tags.get(names.MlflowTag.DEPLOYMENT, ""),
                dagster_run=run.tags.get(names.MlflowTag.DAGSTER_RUN, ""),
                training=run.tags.get(names.MlflowTag.TRAINING, ""),
                started_at=run.start_time or datetime.fromtimestamp(0, UTC),
                ended_as=end,
            )
            for run, end in found
        ]


def _look(ec2: Ec2, instance_id: str) -> list[Instance]:
    found = ec2.look(instance_id)
    return [found] if found else []


def _ask(questions: Sequence[Callable[[], Sequence[T]]]) -> Findings[T]:
    """Ask all of them at once, so that the outages of two do not add up."""
    found: list[T] = []
    faults: list[str] = []
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix=THREADS) as threads:
        for answer in [threads.submit(question) for question in questions]:
            try:
                found += answer.result()
            except (Ec2Error, MlflowError, SettingsError) as error:
                faults.append(str(error))
    return Findings(found=tuple(found), faults=tuple(faults), asked=len(questions))
