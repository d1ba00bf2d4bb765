"""Where the janitor looks: the pipelines of the code location, their EC2 and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from orchestrator.errors import Ec2Error, MlflowError, SettingsError
from orchestrator.janitor.snapshot import OpenRun
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance, tag_value
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings.groups import Group, MachineSettings, MlflowSettings
from orchestrator.settings.source import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Pipeline:
    """What the janitor needs of one pipeline; None where its settings cannot be used."""

    name: str
    machine: MachineSettings | None
    mlflow: MlflowSettings | None


@dataclass
class Sight:
    """What was seen of EC2 and MLflow, and why some of it was not.

    Attributes:
        sources: how many were asked; each adds at most one fault.
        faults: a sentence for each that could not be asked.
    """

    instances: list[Instance] = field(default_factory=list)
    open_runs: list[OpenRun] = field(default_factory=list)
    instances_known: bool = True
    sources: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def blind(self) -> bool:
        """Whether none of them answered."""
        return bool(self.faults) and len(self.faults) >= self.sources

    def of_partition(self, partition: str) -> Sight:
        """Only what belongs to the builds of this partition key, as `tag_value` writes it."""
        return replace(
            self,
            instances=[one for one in self.instances if one.partition == partition],
            open_runs=[one for one in self.open_runs if one.build.partition == partition],
        )


def read_pipelines(all_settings: Iterable[Settings]) -> tuple[list[Pipeline], list[str]]:
    """Read what can be read; the rest is told in one sentence each."""
    pipelines: list[Pipeline] = []
    faults: list[str] = []

    def read(settings: Settings, group: type[Group]) -> Group | None:
        try:
            return settings.read(group)
        except SettingsError as error:
            faults.append(str(error))
            return None

    for settings in all_settings:
        machine, mlflow = read(settings, MachineSettings), read(settings, MlflowSettings)
        pipelines.append(Pipeline(settings.pipeline, machine=machine, mlflow=mlflow))
    return pipelines, faults


class Systems:
    """EC2 and MLflow of all pipelines: one EC2 client per deployment, one MLflow client per login.

    Region and credentials are boto3's own and the same for all pipelines of a code location.
    """

    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        self._pipelines = pipelines
        self._ec2 = {
            tag_value(one.machine.deployment): Ec2(one.machine, policy=retry.JANITOR_EC2)
            for one in pipelines
            if one.machine
        }
        self._mlflow: dict[MlflowSettings, Mlflow] = {}

    @property
    def deployments(self) -> frozenset[str]:
        """The names of this installation, as they stand in tags."""
        return frozenset(self._ec2)

    def ec2(self, instance: Instance) -> Ec2:
        """The client that found this instance."""
        return self._ec2[instance.deployment]

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

    def look(self) -> Sight:
        """Ask all of them at once, so that the outages of two do not add up."""
        sight = Sight()
        recorded = [one for one in self._pipelines if one.mlflow]
        sight.sources = len(self._ec2) + len(recorded)
        with ThreadPoolExecutor(max_workers=8) as threads:
            listings = [threads.submit(_try, ec2.find_all) for ec2 in self._ec2.values()]
            searches = [threads.submit(_try, lambda one=one: self._open_runs(one)) for one in recorded]
            for listing in listings:
                instances, fault = listing.result()
                sight.instances += instances or []
                sight.instances_known &= fault is None
                sight.faults += [fault] if fault else []
            for search in searches:
                runs, fault = search.result()
                sight.open_runs += runs or []
                sight.faults += [fault] if fault else []
        return sight

    def _open_runs(self, pipeline: Pipeline) -> list[OpenRun]:
        settings = pipeline.mlflow
        if settings is None:
            return []
        found = self.mlflow(pipeline.name).find_runs(
            settings.experiment_id, tags={"orchestrator.pipeline": pipeline.name}, statuses={"RUNNING"}
        )
        return [
            OpenRun(
                id=run.id,
                pipeline=pipeline.name,
                partition=run.tags.get("orchestrator.partition", ""),
                deployment=run.tags.get("orchestrator.deployment", ""),
                dagster_run=run.tags.get("dagster_run_id", ""),
                started_at=run.start_time or datetime.fromtimestamp(0, UTC),
            )
            for run in found
        ]


def _try(look: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return look(), None
    except (Ec2Error, MlflowError, SettingsError) as error:
        return None, str(error)
