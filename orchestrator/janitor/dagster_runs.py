"""Dagster's runs as the janitor sees them: those that may train a build, and those whose retry failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES
from dagster._core.execution.retries import auto_reexecution_should_retry_run

from orchestrator import names
from orchestrator.janitor.clients import Sight
from orchestrator.janitor.rules import RETRY_DECIDED
from orchestrator.janitor.snapshot import FINISHED, OpenRun, TrainingRun
from orchestrator.resources.ec2 import Instance, tag_value

# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/storage/tags.py
_PARTITION_TAG = "dagster/partition"
_WILL_RETRY_TAG = "dagster/will_retry"
_RETRY_TAG = "dagster/auto_retry_run_id"
_FAILURE_REASON_TAG = "dagster/failure_reason"
_BACKFILL_TAG = "dagster/backfill"

ASKED_TAG = "orchestrator/retries-asked"
"""How often the janitor has asked Dagster to retry a run (or one that it retries) once more."""

MOST_ASKED = 10
"""How often it does so: ten minutes of code servers that die at the wrong moment."""

RECENT = timedelta(hours=1)
"""How far back a failed run is looked for whose retry failed."""

_AT_WORK = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)
_WAITING = tuple(status for status in dg.DagsterRunStatus if status not in (*_AT_WORK, *FINISHED))


class DagsterRuns:
    """Dagster's runs, as far as they may train a build.

    Args:
        instance: Dagster.
        repository: knows which assets a job without a selection of its own materialises.
        pipelines: the names of ours.
        location: the name of its code location; None: unknown, so any.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        repository: dg.RepositoryDefinition,
        *,
        pipelines: Iterable[str],
        location: str | None = None,
    ) -> None:
        self._instance = instance
        self._repository = repository
        self._location = location
        self._own = frozenset(tag_value(pipeline) for pipeline in pipelines)

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
        records |= {record.dagster_run.run_id: record for record in self._just_failed()}
        runs = [self._training_run(record) for record in records.values()]
        return tuple(run for run in runs if run.id in named or run.retry_failed or _may_train(run))

    def _just_failed(self) -> list[dg.RunRecord]:
        return self._records(
            statuses=[dg.DagsterRunStatus.FAILURE],
            updated_after=datetime.now(UTC) - RECENT,
        )

    def _records(
        self,
        *,
        run_ids: Sequence[str] | None = None,
        statuses: Sequence[dg.DagsterRunStatus] = (),
        tags: Mapping[str, str | Sequence[str]] | None = None,
        created_after: datetime | None = None,
        updated_after: datetime | None = None,
    ) -> list[dg.RunRecord]:
        filters = dg.RunsFilter(
            run_ids=run_ids, statuses=statuses, tags=tags, created_after=created_after, updated_after=updated_after
        )
        return list(self._instance.get_run_records(filters))

    def _retry_failed(self, record: dg.RunRecord) -> bool:
        """Whether Dagster was to retry a run, and did not.

        It gives up when its code server is away at that moment, and says so in the tag. And it passes over a failure
        that it reads in the moment between the event and the run's new status; then the tag announces a retry for
        ever. By the very function by which Dagster decides: where it says yes and no retry comes, the try was in
        vain. A run of the same build that somebody has launched since is instead of the retry.
        """
        run = record.dagster_run
        if run.status != dg.DagsterRunStatus.FAILURE or int(run.tags.get(ASKED_TAG, "0")) >= MOST_ASKED:
            return False
        ended = _moment(record.end_time) or datetime.now(UTC)
        if run.tags.get(_WILL_RETRY_TAG) != "false" and datetime.now(UTC) < ended + RETRY_DECIDED:
            return False
        reason = run.tags.get(_FAILURE_REASON_TAG)
        if not auto_reexecution_should_retry_run(self._instance, run, RunFailureReason(reason) if reason else None):
            return False
        if self._backfill_is_over(run):
            return False
        partition = {_PARTITION_TAG: run.tags.get(_PARTITION_TAG, "")}
        since = self._records(tags=partition, created_after=record.create_timestamp)
        instead = [one.dagster_run for one in since if self._may_train_the_same(one.dagster_run, run)]
        return all(one.run_id == run.run_id for one in instead)

    def _may_train_the_same(self, run: dg.DagsterRun, other: dg.DagsterRun) -> bool:
        mine, others = self._pipelines(run), self._pipelines(other)
        return mine is None or others is None or not mine.isdisjoint(others)

    def _backfill_is_over(self, run: dg.DagsterRun) -> bool:
        """Whether Dagster retries nothing of this run's backfill any more."""
        backfill_id = run.tags.get(_BACKFILL_TAG)
        backfill = self._instance.get_backfill(backfill_id) if backfill_id else None
        return bool(backfill_id) and (backfill is None or backfill.status in BULK_ACTION_TERMINAL_STATUSES)

    def _training_run(self, record: dg.RunRecord) -> TrainingRun:
        run = record.dagster_run
        decided = run.tags.get(_WILL_RETRY_TAG)
        pipelines = self._pipelines(run)
        return TrainingRun(
            id=run.run_id,
            status=run.status,
            pipelines=pipelines,
            partition=tag_value(run.tags.get(_PARTITION_TAG, "")),
            created_at=record.create_timestamp,
            started_at=_moment(record.start_time),
            ended_at=_moment(record.end_time),
            lease_until=_parsed(run.tags.get(names.RunTag.LEASE_UNTIL, "")),
            will_retry=None if decided is None else decided == "true",
            retry=run.tags.get(_RETRY_TAG),
            retry_failed=self._retry_failed(record),
            trained=run.tags.get(names.RunTag.TRAINED),
            foreign=self._elsewhere(run) or (pipelines is not None and pipelines.isdisjoint(self._own)),
        )

    def _elsewhere(self, run: dg.DagsterRun) -> bool:
        """Whether it says that it is of another code location, which may have a pipeline of the same name."""
        origin = run.remote_job_origin
        return origin is not None and self._location is not None and origin.location_name != self._location

    def _pipelines(self, run: dg.DagsterRun) -> frozenset[str] | None:
        selected: Iterable[dg.AssetKey] | None = run.asset_selection
        if not selected:
            if self._elsewhere(run) or not self._repository.has_job(run.job_name):
                return None
            selected = self._repository.get_job(run.job_name).asset_layer.executable_asset_keys
        # Not only this code location's: a run of another one that shares the deployment's name may adopt an instance.
        models = [key for key in selected if key.path[1:] == ["trained_model"]]
        steps = run.step_keys_to_execute  # of a re-execution from failure, which may have got past the training
        if steps is not None:
            models = [key for key in models if any(step.startswith(f"{key.to_python_identifier()}.") for step in steps)]
        return frozenset(tag_value(key.path[0]) for key in models)


def _may_train(run: TrainingRun) -> bool:
    return not run.finished and run.pipelines != frozenset()


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _parsed(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else None
