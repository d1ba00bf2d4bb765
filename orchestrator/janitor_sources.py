"""Where the janitor looks: the pipelines of the code location, their EC2 and MLflow, and Dagster's runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import dagster as dg

from orchestrator.errors import Ec2Error, MlflowError, SettingsError
from orchestrator.janitor_rules import FINISHED, OpenRun, TrainingRun
from orchestrator.pipeline.lease import RUN_TAG, TRAINED_TAG
from orchestrator.resources.ec2 import Ec2, Instance, Pace
from orchestrator.resources.ec2_instance import tag_value
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings import Group, MachineSettings, MlflowSettings, Settings

T = TypeVar("T")

SETTINGS_METADATA = "orchestrator/settings"
"""Metadata of `P/trained_model`: how its settings differ from the environment, without secrets."""

PATIENCE_SECONDS = 10.0
"""How long one call rides out an outage; the next tick is a minute away, and Dagster ends one after 60 s."""

# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/storage/tags.py
_PARTITION_TAG = "dagster/partition"
_WILL_RETRY_TAG = "dagster/will_retry"
_RETRY_TAG = "dagster/auto_retry_run_id"

_AT_WORK = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_WAITING = tuple(status for status in dg.DagsterRunStatus if status not in (*_AT_WORK, *FINISHED))


@dataclass(frozen=True)
class Pipeline:
    """What the janitor needs of one pipeline; None where its settings are not complete."""

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


def settings_of(repository: dg.RepositoryDefinition) -> list[Settings]:
    """The settings of each pipeline of a code location, as its asset's metadata tells them."""
    told = (node.metadata.get(SETTINGS_METADATA) for node in repository.asset_graph.asset_nodes)
    values = [one.value if isinstance(one, dg.JsonMetadataValue) else one for one in told]
    return [
        Settings(pipeline=value["pipeline"], values=value["values"], from_env=value["from_env"])
        for value in values
        if isinstance(value, Mapping)
    ]


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
            tag_value(one.machine.deployment): Ec2(one.machine, pace=Pace(outage=PATIENCE_SECONDS))
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
            self._mlflow[settings] = Mlflow(settings, patience_seconds=PATIENCE_SECONDS)
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


class DagsterRuns:
    """Dagster's runs, as far as they may train a build.

    Args:
        instance: Dagster.
        repository: knows which assets a job without a selection of its own materialises.
    """

    def __init__(self, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> None:
        self._instance = instance
        self._repository = repository

    def read(self, sight: Sight) -> tuple[TrainingRun, ...]:
        """The runs that instances and MLflow runs name, their retries, and all unfinished ones that may train."""
        records: dict[str, dg.RunRecord] = {}
        seen: list[Instance | OpenRun] = [*sight.instances, *sight.open_runs]
        missing = {one.dagster_run for one in seen} - {""}
        while missing:
            found = self._records(run_ids=sorted(missing))
            records |= {record.dagster_run.run_id: record for record in found}
            retries = {record.dagster_run.tags.get(_RETRY_TAG, "") for record in found}
            missing = retries - records.keys() - missing - {""}
        named = set(records)
        # A backfill may have queued thousands; those of interest are the ones that could take something over.
        partitions = {one.partition for one in seen}
        partitions |= {record.dagster_run.tags.get(_PARTITION_TAG, "") for record in records.values()}
        unfinished = self._records(statuses=_WAITING, tags={_PARTITION_TAG: sorted(partitions)}) if partitions else []
        # Those at work come last, so that one which begins at this moment is seen at least once.
        unfinished += self._records(statuses=_AT_WORK)
        records |= {record.dagster_run.run_id: record for record in unfinished}
        runs = [self._training_run(record) for record in records.values()]
        return tuple(run for run in runs if run.id in named or run.pipelines != frozenset())

    def _records(
        self,
        *,
        run_ids: Sequence[str] | None = None,
        statuses: Sequence[dg.DagsterRunStatus] = (),
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> list[dg.RunRecord]:
        return list(self._instance.get_run_records(dg.RunsFilter(run_ids=run_ids, statuses=statuses, tags=tags)))

    def _training_run(self, record: dg.RunRecord) -> TrainingRun:
        run = record.dagster_run
        decided = run.tags.get(_WILL_RETRY_TAG)
        return TrainingRun(
            id=run.run_id,
            status=run.status,
            pipelines=self._pipelines(run),
            partition=tag_value(run.tags.get(_PARTITION_TAG, "")),
            started_at=_moment(record.start_time),
            ended_at=_moment(record.end_time),
            lease_until=_parsed(run.tags.get(RUN_TAG, "")),
            will_retry=None if decided is None else decided == "true",
            retry=run.tags.get(_RETRY_TAG),
            trained=run.tags.get(TRAINED_TAG),
        )

    def _pipelines(self, run: dg.DagsterRun) -> frozenset[str] | None:
        selected: Iterable[dg.AssetKey] | None = run.asset_selection
        if not selected:
            if not self._repository.has_job(run.job_name):
                return None
            selected = self._repository.get_job(run.job_name).asset_layer.executable_asset_keys
        # Not only this code location's: another one may share the deployment's name.
        models = [key.path for key in selected if key.path[1:] == ["trained_model"]]
        return frozenset(tag_value(pipeline) for pipeline, _ in models)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else None
