"""Dagster's runs as the janitor sees them: those that may train a build, and those whose retry was missed.

Dagster's database holds everybody's runs, and on a bad day thousands of failed ones. So a look asks it a fixed number
of questions, whatever it holds, and only our own failures are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import assets_of_job, has_step_of, location_of, run_retries, unfinished_backfills
from orchestrator.janitor.retries import FailedRun, Successor, missed_retries
from orchestrator.janitor.snapshot import FINISHED, TrainingRun
from orchestrator.pipeline.training.launch_record import LaunchRecord
from orchestrator.resources.ec2 import tag_value

RECENT = timedelta(hours=1)
"""How far back a failed run is looked for whose retry was missed."""

_AT_WORK = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_WAITING = tuple(status for status in dg.DagsterRunStatus if status not in (*_AT_WORK, *FINISHED))

_Records = dict[str, dg.RunRecord]


class DagsterRuns:
    """Dagster's runs, as far as they may train a build.

    Args:
        instance: Dagster.
        repository: knows which assets a job without a selection of its own materialises.
        pipelines: the names of ours.
        broken: the names of those whose defs.yaml cannot be read; their jobs are not in the repository.
        location: the name of its code location; None: unknown, so any.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        repository: dg.RepositoryDefinition,
        *,
        pipelines: Collection[str],
        broken: Collection[str] = (),
        location: str | None = None,
    ) -> None:
        self._instance = instance
        self._repository = repository
        self._location = location
        self._own = frozenset(map(tag_value, pipelines))
        self._assets_of_job: dict[str, frozenset[dg.AssetKey] | None] = {
            names.training_job(pipeline): frozenset({dg.AssetKey([pipeline, names.TRAINED_MODEL])})
            for pipeline in broken
        }

    def read(self, owners: AbstractSet[str], partitions: AbstractSet[str]) -> tuple[TrainingRun, ...]:
        """The look of a tick.

        Args:
            owners: IDs of the runs that instances and MLflow runs name.
            partitions: keys of the partitions that those belong to.

        Returns:
            These runs and their retries, all unfinished runs that may train, and our failed ones whose retry was
            missed or is still to come.
        """
        records, named = self._of_builds(owners, partitions)
        records |= self._records(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - RECENT)
        return self._training_runs(records, named)

    def read_builds(self, owners: AbstractSet[str], partitions: AbstractSet[str]) -> tuple[TrainingRun, ...]:
        """The same without the failed runs that nothing names: what decides about these builds' belongings."""
        return self._training_runs(*self._of_builds(owners, partitions))

    def read_run(self, run_id: str) -> tuple[TrainingRun, ...]:
        """One run alone; none when it was deleted."""
        return self._training_runs(self._records(run_ids=[run_id]), {run_id})

    def _of_builds(self, owners: AbstractSet[str], partitions: AbstractSet[str]) -> tuple[_Records, AbstractSet[str]]:
        records: _Records = {}
        missing = set(owners) - {""}
        while missing:
            found = self._records(run_ids=sorted(missing))
            records |= found
            retries = {record.dagster_run.tags.get(names.DagsterTag.AUTO_RETRY_RUN, "") for record in found.values()}
            missing = retries - records.keys() - missing - {""}
        named = frozenset(records)
        # A backfill may have queued thousands; those of interest are the ones that could take something over.
        keys = partitions | {_partition(record.dagster_run) for record in records.values()}
        if keys:
            records |= self._records(statuses=_WAITING, tags={names.DagsterTag.PARTITION: sorted(keys)})
        # Those at work come last, so that one which begins at this moment is seen at least once.
        records |= self._records(statuses=_AT_WORK)
        return records, named

    def _records(
        self,
        *,
        run_ids: Sequence[str] | None = None,
        statuses: Sequence[dg.DagsterRunStatus] = (),
        tags: Mapping[str, str | Sequence[str]] | None = None,
        created_after: datetime | None = None,
        updated_after: datetime | None = None,
    ) -> _Records:
        filters = dg.RunsFilter(
            run_ids=run_ids, statuses=statuses, tags=tags, created_after=created_after, updated_after=updated_after
        )
        return {record.dagster_run.run_id: record for record in self._instance.get_run_records(filters)}

    # ---- What they mean

    def _training_runs(self, records: _Records, named: Collection[str]) -> tuple[TrainingRun, ...]:
        runs = [self._training_run(record) for record in records.values()]
        failures = [
            _failed_run(records[run.id], run.pipelines)
            for run in runs
            if run.ours and run.status == dg.DagsterRunStatus.FAILURE
        ]
        missed = missed_retries(failures, self, retries=run_retries(self._instance), now=datetime.now(UTC))
        judged = [replace(run, retry_missed=True) if run.id in missed else run for run in runs]
        return tuple(run for run in judged if run.id in named or _may_train(run) or _may_be_retried(run))

    def _training_run(self, record: dg.RunRecord) -> TrainingRun:
        run = record.dagster_run
        decided = run.tags.get(names.DagsterTag.WILL_RETRY)
        pipelines = self._pipelines(run)
        return TrainingRun(
            id=run.run_id,
            status=run.status,
            pipelines=pipelines,
            partition=tag_value(_partition(run)),
            created_at=record.create_timestamp,
            started_at=_moment(record.start_time),
            ended_at=_moment(record.end_time),
            lease_until=_parsed(run.tags.get(names.RunTag.LEASE_UNTIL, "")),
            will_retry=None if decided is None else decided == "true",
            retry=run.tags.get(names.DagsterTag.AUTO_RETRY_RUN),
            launch=LaunchRecord.from_tags(run.tags),
            late_since=_parsed(run.tags.get(names.RunTag.LATE, "")),
            trained=run.tags.get(names.RunTag.TRAINED),
            foreign=self._elsewhere(run) or (pipelines is not None and pipelines.isdisjoint(self._own)),
        )

    def _elsewhere(self, run: dg.DagsterRun) -> bool:
        """Whether it says that it is of another code location, which may have a pipeline of the same name."""
        location = location_of(run)
        return location is not None and self._location is not None and location != self._location

    def _pipelines(self, run: dg.DagsterRun) -> frozenset[str] | None:
        selected: Iterable[dg.AssetKey] | None = run.asset_selection
        if not selected:
            selected = None if self._elsewhere(run) else self._assets(run.job_name)
            if selected is None:
                return None
        # Not only this code location's: a run of another one that shares the deployment's name may adopt an instance.
        models = [key for key in selected if key.path[1:] == [names.TRAINED_MODEL]]
        steps = run.step_keys_to_execute  # of a re-execution from failure, which may have got past the training
        if steps is not None:
            models = [key for key in models if has_step_of(steps, key)]
        return frozenset(tag_value(key.path[0]) for key in models)

    def _assets(self, job: str) -> frozenset[dg.AssetKey] | None:
        if job not in self._assets_of_job:
            self._assets_of_job[job] = assets_of_job(self._repository, job)
        return self._assets_of_job[job]

    # ---- What retries.py asks

    def group_sizes(self, roots: Collection[str]) -> Mapping[str, int]:
        """How many runs try each of these again, itself included; without those that were deleted."""
        known = self._records(run_ids=sorted(roots))
        again = self._records(tags={names.DagsterTag.ROOT_RUN: sorted(known)}) if known else {}
        sizes = Counter(record.dagster_run.tags[names.DagsterTag.ROOT_RUN] for record in again.values())
        return {root: 1 + sizes[root] for root in known}

    def unfinished_backfills(self, ids: Collection[str]) -> AbstractSet[str]:
        """Those backfills that go on."""
        return unfinished_backfills(self._instance, ids)

    def successors(self, partitions: Collection[str], *, since: datetime) -> Sequence[Successor]:
        """The runs of these partitions that were created after a moment."""
        records = self._records(tags={names.DagsterTag.PARTITION: sorted(partitions)}, created_after=since)
        return [
            Successor(
                id=run_id,
                partition=_partition(record.dagster_run),
                pipelines=self._pipelines(record.dagster_run),
                created_at=record.create_timestamp,
            )
            for run_id, record in records.items()
        ]


def _partition(run: dg.DagsterRun) -> str:
    return run.tags.get(names.DagsterTag.PARTITION, "")


def _may_train(run: TrainingRun) -> bool:
    """Or surely is ours, and may be dead: each run of ours renews a lease, also the one that chooses a champion."""
    return not run.finished and (run.pipelines != frozenset() or run.lease_until is not None)


def _may_be_retried(run: TrainingRun) -> bool:
    """Whether a failed run's retry was missed, or is still to come."""
    pending = run.will_retry is not False and run.retry is None
    return run.status == dg.DagsterRunStatus.FAILURE and run.ours and (run.retry_missed or pending)


def _failed_run(record: dg.RunRecord, pipelines: frozenset[str] | None) -> FailedRun:
    run = record.dagster_run
    return FailedRun(
        id=run.run_id,
        root=run.root_run_id or run.run_id,
        partition=_partition(run),
        pipelines=pipelines,
        created_at=record.create_timestamp,
        ended_at=_moment(record.end_time) or datetime.now(UTC),
        tags=run.tags,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):  # the latter: the year 1 or 9999, in another zone
        return None
