"""The sensor that has the champion chosen when models were recorded on which nobody has decided yet.

It covers runs of the sensor, runs by hand and backfills alike, whatever became of them: what counts is that a model is
recorded. Dagster's own means do not: an asset backfill runs what has no partitions once at its end, and not at all when
a run crashed; an automation condition waits for every partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import unfinished_backfills
from orchestrator.pipeline.models.champion_asset import RECORDS_PER_PAGE, decided_up_to, new_models, newest_model

if TYPE_CHECKING:
    from orchestrator.dagster_instance import UnresolvedAssetJobDefinition

MOST_TRIES = 6
PAUSE = timedelta(minutes=5)
"""After a decision that failed; it doubles each time."""

_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_UNFINISHED = tuple(status for status in dg.DagsterRunStatus if status not in _OVER)


def champion_sensor(
    pipeline: str, job: UnresolvedAssetJobDefinition, *, interval_seconds: int = 15
) -> dg.SensorDefinition:
    """The sensor of a pipeline's champion; a tick without anything new asks Dagster's database two questions.

    Args:
        pipeline: its name.
        job: chooses the champion.
        interval_seconds: least time between two ticks.
    """

    @dg.sensor(
        name=names.champion_sensor(pipeline),
        target=job,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Registers newly trained models and chooses the champion; for a backfill once, when it has ended.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return next_decision(context.instance, pipeline, now=datetime.now(UTC))

    return evaluate


def next_decision(instance: dg.DagsterInstance, pipeline: str, *, now: datetime) -> dg.RunRequest | dg.SkipReason:
    """What is to be launched now.

    Dagster launches each run key once, so that a tick which is evaluated twice launches nothing more.
    """
    newest, decided = newest_model(instance, pipeline), decided_up_to(instance, pipeline)
    if newest <= decided:
        return dg.SkipReason("The champion was chosen over all models that are recorded.")
    job = names.champion_job(pipeline)
    if instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_UNFINISHED), limit=1):
        return dg.SkipReason("The champion is being chosen.")
    if backfill := _awaited_backfill(instance, pipeline, after=decided):
        return dg.SkipReason(f"The champion is chosen when backfill {backfill} has ended.")
    need = {names.RunTag.DECIDES: str(newest)}
    tries = instance.get_run_records(dg.RunsFilter(job_name=job, tags=need), limit=MOST_TRIES + 1)
    if not tries:
        return dg.RunRequest(run_key=f"{newest}", tags=need)
    return _another_try(tries, need, newest, now)


def _another_try(
    tries: Sequence[dg.RunRecord], need: dict[str, str], newest: int, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    last = max(tries, key=lambda record: record.create_timestamp)
    run = last.dagster_run
    if run.status != dg.DagsterRunStatus.FAILURE:
        return dg.SkipReason(f"Run {run.run_id[:8]} was to choose the champion and is {run.status.value}.")
    if run.tags.get(names.DagsterTag.WILL_RETRY) == "true":
        return dg.SkipReason(f"Dagster retries run {run.run_id[:8]}, which was to choose the champion.")
    if len(tries) >= MOST_TRIES:
        return dg.SkipReason(
            f"The champion could not be chosen {len(tries)} times, run {run.run_id[:8]} says why; it is tried again "
            "when the next model is recorded, or launch the job by hand."
        )
    ended = datetime.fromtimestamp(last.end_time, UTC) if last.end_time else now
    due = ended + PAUSE * 2 ** (len(tries) - 1)
    if now < due:
        return dg.SkipReason(
            f"Run {run.run_id[:8]} failed to choose the champion; it is tried again at {due:%H:%M} UTC."
        )
    return dg.RunRequest(run_key=f"{newest}-{len(tries)}", tags=need)


def _awaited_backfill(instance: dg.DagsterInstance, pipeline: str, *, after: int) -> str | None:
    """A backfill that goes on, if all models that are not decided on are of such."""
    run_ids = set[str]()
    for position, record in enumerate(new_models(instance, pipeline, after=after)):
        if position >= RECORDS_PER_PAGE:
            break
        run_ids.add(record.run_id)
    records = instance.get_run_records(dg.RunsFilter(run_ids=sorted(run_ids)))
    backfills = {record.dagster_run.tags.get(names.DagsterTag.BACKFILL, "") for record in records}
    if not backfills or "" in backfills or len(records) < len(run_ids):
        return None
    going_on = unfinished_backfills(instance, backfills)
    return min(going_on) if going_on == backfills else None
