"""What an attempt asks Dagster: which runs it tries again, which one is its rival, and whether one is alive."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import Enum

import dagster as dg
import tenacity

from orchestrator import names
from orchestrator.dagster_instance import add_run_tags
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.resources.ec2 import Instance

PATIENCE_SECONDS = 75.0
"""How long Dagster's database may be away when a training ends."""


class Liveness(Enum):
    """Whether a run may still act. Who cannot tell acts as if it may."""

    ALIVE = "alive"
    """Queued, starting or under way."""

    DEAD = "dead"
    """Ended, by Dagster's books."""

    UNKNOWN = "unknown"
    """Dagster has no such run: it is of another Dagster, or was deleted."""


class RunHistory:
    """What Dagster knows of the runs of a build, seen from one of them: the run that an op belongs to.

    Implements `DagsterRun` of `orchestrator.pipeline.training.attempt`.
    """

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._instance = context.instance
        self._asset = context.assets_def.key
        self._job = names.training_job(self._asset.path[0])
        self._partition = context.partition_key
        self.run_id = context.run_id
        self.from_sensor = context.run.parent_run_id is None and names.DagsterTag.RUN_KEY in context.run.tags
        tried = list(self._tried(context.run))
        self.root_run_id = tried[-1].run_id
        self._tried_runs = tried[1:]
        parent = self._parent(context.run)
        self._late_before = parent.tags.get(names.RunTag.LATE) if parent else None
        # Dagster copies a run's tags to the one that tries it again, so what a success before them has trained is in
        # the tags of all of these, unless one has trained itself. This run has just begun: its own tag is a copy.
        success = self._parent(tried[-1])
        copied = success.tags.get(names.RunTag.TRAINED) if success else None
        trained = (run.tags.get(names.RunTag.TRAINED) for run in (*self._siblings(context.run), *tried[1:]))
        self.trained_before = next((mlflow_run for mlflow_run in trained if mlflow_run not in (None, copied)), None)

    def _siblings(self, run: dg.DagsterRun) -> Iterator[dg.DagsterRun]:
        """All other runs that try the same one again, newest first: an automatic retry of it may have trained."""
        if run.root_run_id is None:
            return
        for record in self._instance.get_run_records(dg.RunsFilter(tags={names.DagsterTag.ROOT_RUN: run.root_run_id})):
            other = record.dagster_run
            *_, root = self._tried(other)
            if other.run_id != self.run_id and root.run_id == self.root_run_id:
                yield other

    def _tried(self, run: dg.DagsterRun) -> Iterator[dg.DagsterRun]:
        """The run, and those that it tries again; re-executing a success is a training of its own."""
        yield run
        while (parent := self._parent(run)) and parent.status != dg.DagsterRunStatus.SUCCESS:
            yield (run := parent)

    def _relatives(self, owner: str) -> Iterator[dg.DagsterRun]:
        """As they are now: this run and `owner`, those that it tries again, and the others that try the same one."""
        for run_id in dict.fromkeys((self.run_id, owner, *(run.run_id for run in self._tried_runs))):
            if run_id and (run := self._instance.get_run_by_id(run_id)):
                yield run
                if run_id == self.run_id:
                    yield from self._siblings(run)

    def _parent(self, run: dg.DagsterRun) -> dg.DagsterRun | None:
        return self._instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None

    def trained(self, mlflow_run: str) -> None:
        """Keep, where an MLflow that is away does not matter, that the training process exited 0.

        It is the only proof of that once the instance is gone; so a database that is away for a while is waited for.
        """
        self._keep({names.RunTag.TRAINED: mlflow_run})

    def launched(self, record: LaunchRecord) -> None:
        """Keep, out of reach of whoever may tag instances, what was launched or taken over."""
        self._keep(record.tags())

    def launched_before(self) -> Collection[LaunchRecord]:
        """What the runs that this one tries again have launched last."""
        records = [LaunchRecord.from_tags(run.tags) for run in self._tried_runs if self._trains_build(run)]
        return {record for record in records if record}

    def launch_of(self, instance: Instance) -> LaunchRecord | None:
        """What a run that trains this build has kept of this very instance; None: nothing that agrees with its tags.

        The runs that count: this one, those that it tries again, others that try the same one again, and the run that
        the instance names.
        """
        for run in self._relatives(instance.dagster_run):
            record = LaunchRecord.from_tags(run.tags) if self._trains_build(run) else None
            if record and record.agrees_with(instance):
                return record
        return None

    def ended_late(self) -> bool:
        """Whether the janitor has ended this run's training, or the one that it was to take over, at its deadline."""
        run = self._instance.get_run_by_id(self.run_id)
        late = run.tags.get(names.RunTag.LATE) if run else None
        return late not in (None, self._late_before)  # a re-execution by hand inherits the tag

    def _keep(self, tags: Mapping[str, str]) -> None:
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
            wait=tenacity.wait_exponential(multiplier=0.5, max=10),
            retry=tenacity.retry_if_exception_type(Exception),  # Dagster's storage raises what its driver does
            reraise=True,
        ):
            with attempt:
                add_run_tags(self._instance, self.run_id, tags)

    def liveness(self, run_id: str) -> Liveness:
        """Whether this run is queued, starting or under way."""
        run = self._instance.get_run_by_id(run_id)
        if run is None:
            return Liveness.UNKNOWN
        return Liveness.DEAD if run.is_finished else Liveness.ALIVE

    def rival(self) -> str | None:
        """The run that began to train this very build before us, and is still at it."""
        live = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        records = self._instance.get_run_records(
            dg.RunsFilter(statuses=live, tags={names.DagsterTag.PARTITION: self._partition})
        )
        began = {
            record.dagster_run.run_id: (record.start_time, record.dagster_run.run_id)
            for record in records
            if record.start_time is not None and self._trains_it(record.dagster_run)
        }
        mine = began.pop(self.run_id, None)
        earlier = [run for run, start in began.items() if mine is None or start < mine]
        return min(earlier, key=began.__getitem__, default=None)

    def _trains_build(self, run: dg.DagsterRun) -> bool:
        return run.tags.get(names.DagsterTag.PARTITION) == self._partition and self._trains_it(run)

    def _trains_it(self, run: dg.DagsterRun) -> bool:
        # A run of the job has no selection of its own: it materialises all that the job does.
        return run.job_name == self._job or self._asset in (run.asset_selection or ())
