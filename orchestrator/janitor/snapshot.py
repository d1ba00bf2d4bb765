"""What the janitor sees at one moment: instances, MLflow runs and Dagster runs, and which build each is of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple, Self

from dagster import DagsterRunStatus

from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.resources.ec2 import Instance, tag_value

FINISHED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


class BuildKey(NamedTuple):
    """One build of one pipeline, both as `tag_value` writes them."""

    pipeline: str
    partition: str

    @classmethod
    def of(cls, pipeline: str, partition: str) -> BuildKey:
        """The key of a build from its plain names."""
        return cls(tag_value(pipeline), tag_value(partition))


@dataclass(frozen=True)
class TrainingRun:
    """A Dagster run that trains a build, or may do so.

    Attributes:
        pipelines: whose models it trains, as `tag_value` writes them; None: unknown, so any.
        partition: the same of its partition; empty when it has none.
        created_at: when Dagster wrote it down; None: unknown.
        started_at: when its worker began; None before that.
        ended_at: when it finished; None before that.
        lease_until: its own tag; a retry inherits its parent's, so an old one alone means nothing.
        will_retry: what Dagster has decided on a failed run; None: nothing (yet).
        retry: ID of the run that Dagster launched to retry this one.
        retry_missed: Dagster was to retry this failed run, and did not.
        launch: what it has kept of the instance that it launched or took over; a retry inherits its parent's.
        late_since: when its instance was ended because it had run past its deadline; None: it was not.
        trained: the MLflow run whose training process it, or one whose tags it has inherited, saw exit with 0.
        foreign: another code location's, as far as can be told: its models are trained without a lease.
    """

    id: str
    status: DagsterRunStatus
    pipelines: frozenset[str] | None = None
    partition: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    lease_until: datetime | None = None
    will_retry: bool | None = None
    retry: str | None = None
    retry_missed: bool = False
    launch: LaunchRecord | None = None
    late_since: datetime | None = None
    trained: str | None = None
    foreign: bool = False

    @property
    def finished(self) -> bool:
        """Whether nothing of it goes on."""
        return self.status in FINISHED

    @property
    def ours(self) -> bool:
        """Whether it surely trains one of our pipelines: such a run renews a lease, and may be ended or retried."""
        return self.lease_until is not None or (bool(self.pipelines) and not self.foreign)

    def may_train(self, build: BuildKey) -> bool:
        """Whether it could use the instance or the MLflow run of this build."""
        return self.partition == build.partition and (self.pipelines is None or build.pipeline in self.pipelines)


@dataclass(frozen=True)
class OpenRun:
    """An MLflow run that is RUNNING and carries our tags; or one that we ended, and that is FINISHED all the same.

    Attributes:
        pipeline: as its settings name it.
        deployment: the installation that made it; empty when it does not say.
        dagster_run: ID of the Dagster run that fills it.
        ended_as: what we ended it as, before a process that lived on called it FINISHED; None: it is RUNNING.
        training: the run that the training was given; another one, for those that it made besides.
    """

    id: str
    pipeline: str
    partition: str
    dagster_run: str
    started_at: datetime
    deployment: str = ""
    ended_as: Literal["FAILED", "KILLED"] | None = None
    training: str = ""

    @property
    def root(self) -> str:
        """The run of the training that it belongs to."""
        return self.training or self.id

    @property
    def build(self) -> BuildKey:
        """The build that it is of."""
        return BuildKey.of(self.pipeline, self.partition)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What was seen, all at about the same time, Dagster's runs last.

    Attributes:
        deployments: this installation's names; what carries another one is not ours.
        pipelines: those whose settings can be read, as `tag_value` writes them.
        broken: those whose defs.yaml cannot be read, written the same way.
        watching_since: from when on the janitor has looked without a gap.
        looked_before: when the janitor looked before; None: never.
        instances: those that still cost money.
        disguised: instances that a run of ours has launched, that are late, and that do not bear our tags any more.
        instances_known: False when EC2 could not be asked, so that a missing instance proves nothing.
        open_runs: MLflow runs that are RUNNING.
        runs: the Dagster runs that the others name, their retries, the failed ones of ours whose retry is still to
            come, and all unfinished ones that may train.
    """

    deployments: frozenset[str]
    pipelines: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    watching_since: datetime
    looked_before: datetime | None = None
    instances: tuple[Instance, ...] = ()
    disguised: tuple[Instance, ...] = ()
    instances_known: bool = True
    open_runs: tuple[OpenRun, ...] = ()
    runs: tuple[TrainingRun, ...] = ()

    @property
    def owners(self) -> frozenset[str]:
        """IDs of the Dagster runs that instances and MLflow runs name."""
        return frozenset(holder.dagster_run for holder in self._holders) - {""}

    @property
    def partitions(self) -> frozenset[str]:
        """The partition keys of all builds that hold something."""
        return frozenset(holder.partition for holder in self._holders)

    @property
    def _holders(self) -> list[Instance | OpenRun]:
        return [*self.instances, *self.open_runs]

    def of_partition(self, partition: str) -> Self:
        """Only what belongs to the builds of this partition key, as `tag_value` writes it; no Dagster runs."""
        return replace(
            self,
            instances=tuple(instance for instance in self.instances if instance.partition == partition),
            disguised=tuple(instance for instance in self.disguised if instance.partition == partition),
            open_runs=tuple(run for run in self.open_runs if run.build.partition == partition),
            runs=(),
        )

    def is_broken(self, pipeline: str) -> bool:
        """Whether nobody can read what this pipeline, as `tag_value` writes it, is meant to do.

        The name of a pipeline stands in its defs.yaml: while one cannot be read, a name that nobody knows may be its.
        """
        return bool(self.broken) and pipeline not in self.pipelines
