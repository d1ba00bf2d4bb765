"""The metrics that are read of Dagster: runs, stages, errors, sensors, daemons, the janitor's reports."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.dagster_run import RunRecord  # noqa: TID251 - what get_run_records answers
from dagster._utils.error import SerializableErrorInfo  # type: ignore[attr-defined]  # noqa: TID251 - of a failed step
from prometheus_client.core import GaugeMetricFamily
from pydantic import ValidationError

from orchestrator import errors, names
from orchestrator.operate.web.dagster_view import DagsterView, RunState, SensorView
from orchestrator.operate.web.health import missing_parts
from orchestrator.operate.web.metrics import families
from orchestrator.pipeline.builds.cursor import Cursor
from orchestrator.pipeline.models.deployment_cursor import DeploymentCursor

ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
ENDED_AT_ONCE = 200
"""Runs that have ended, of which one look counts the stages; a look is 15 s after the last."""

OVERLAP = timedelta(minutes=2)
"""A run's last change is written by another process, with a clock of its own."""

REMEMBERED = 5_000
EXPIRING_SECONDS = 30.0
SETTLED_SECONDS = 30.0
"""A retry bears its parent's lease until it renews it, as the first thing it does."""

JANITOR_REPORTS = 100

SYSTEMS: dict[type[errors.OrchestratorError], str] = {
    errors.JenkinsError: "jenkins",
    errors.Ec2Error: "ec2",
    errors.SshError: "ssh",
    errors.MlflowError: "mlflow",
    errors.SettingsError: "settings",
    errors.BudgetExceeded: "budget",
    errors.TrainingError: "training",
}

JANITOR_ACTIONS = {
    "terminate instance": "terminate_instance",
    "end MLflow run": "end_mlflow_run",
    "mark Dagster run": "end_dagster_run",
    "have Dagster run": "retry_dagster_run",
}
"""How the sentences of its actions begin → label."""


class DagsterMetrics:
    """Looks at Dagster; each look counts what has happened since the one before.

    Args:
        view: Dagster.
        counted: where that is counted.
        now: seconds since 1970.
    """

    def __init__(
        self, view: DagsterView, counted: families.Accumulated, *, now: Callable[[], float] = time.time
    ) -> None:
        self._view = view
        self._instance = view.instance
        self._counted = counted
        self._now = now
        self._began = self._looked = now()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._ticked: dict[str, float] = {}
        self._pipelines: dict[str, str] = {}
        self._reports: int | None = None

    def look(self) -> Sequence[GaugeMetricFamily]:
        """The gauges as they are now."""
        now = self._now()
        sensors = list(self._view.sensors())
        beats = self._view.heartbeats()
        found = [
            families.READY.family(float(not any(missing_parts(self._view, now)))),
            families.HEARTBEAT_AGE.family({(kind,): now - beat for kind, beat in beats.items() if beat is not None}),
            families.SENSOR_ON.family({(sensor.name,): float(sensor.is_on) for sensor in sensors}),
            families.TICK_AGE.family(
                {(each.name,): now - each.ticked_at for each in sensors if each.is_on and each.ticked_at is not None}
            ),
            families.SENSOR_LAG.family({(each.pipeline,): _lag(each) for each in sensors if each.pipeline}),
            families.CHAMPION_WAITS.family(dict(self._waiting())),
            *self._runs(now),
        ]
        self._count_ended(now)
        self._count_failed_ticks(sensors)
        self._count_janitor()
        return found

    def _waiting(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for pipeline, text in self._view.deployment_cursors():
            if cursor := DeploymentCursor.parse(text):
                yield (pipeline,), float(cursor.waiting)

    def _runs(self, now: float) -> Iterator[GaugeMetricFamily]:
        counts: Counter[tuple[str, ...]] = Counter()
        oldest: dict[tuple[str, ...], float] = {}
        for state in self._view.runs(known=self._pipelines):
            pipeline = self._pipeline_of(state)
            counts[pipeline, state.status] += state.count
            age = now - state.oldest if state.status == dg.DagsterRunStatus.QUEUED.value else 0
            oldest[(pipeline,)] = max(oldest.get((pipeline,), 0), age)
        yield families.RUNS.family(counts)
        yield families.OLDEST_QUEUED.family(oldest)
        expiring: Counter[tuple[str, ...]] = Counter()
        started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
        for record in self._instance.get_run_records(started):
            pipeline = pipeline_of(record.dagster_run)
            expiring[(pipeline,)] += _is_expiring(record, now)
        yield families.LEASES_EXPIRING.family(expiring)

    def _pipeline_of(self, state: RunState) -> str:
        if state.run is None:
            return self._pipelines.get(state.run_id, families.OTHER) if state.run_id else pipeline_of_job(state.job)
        pipeline = self._pipelines[state.run.run_id] = pipeline_of(state.run)
        return pipeline

    def _count_ended(self, now: float) -> None:
        since = datetime.fromtimestamp(self._looked, UTC) - OVERLAP
        filters = dg.RunsFilter(statuses=ENDED, updated_after=since)
        for record in reversed(self._instance.get_run_records(filters, limit=ENDED_AT_ONCE)):
            run = record.dagster_run
            if run.run_id in self._ended or (record.end_time or 0) < self._began:
                continue
            self._ended[run.run_id] = None
            pipeline = pipeline_of(run)
            self._counted.runs_ended.labels(pipeline, run.status.value).inc()
            if run.tags.get(names.DagsterTag.WILL_RETRY, "").lower() == "true":
                self._counted.retries.labels(pipeline).inc()
            if pipeline != families.OTHER:
                self._count_stages(run.run_id, pipeline)
            if run.status is dg.DagsterRunStatus.FAILURE:
                self._count_errors(run.run_id)
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        self._looked = now

    def _count_stages(self, run_id: str, pipeline: str) -> None:
        for step, outcome, seconds in self._view.steps(run_id):
            stage = step.rpartition(".")[2]
            if stage in names.Step.ALL:
                self._counted.stage_seconds.labels(pipeline, stage, outcome).observe(seconds)

    def _count_errors(self, run_id: str) -> None:
        for error in self._view.step_errors(run_id):
            self._counted.errors.labels(system_of(error)).inc()

    def _count_failed_ticks(self, sensors: Sequence[SensorView]) -> None:
        for sensor in sensors:
            after = self._ticked.get(sensor.name, self._began)
            if not sensor.may_have_failed or (sensor.ticked_at or 0) <= after:
                continue
            for tick in self._view.failed_ticks(sensor, after=after):
                self._ticked[sensor.name] = max(self._ticked.get(sensor.name, after), tick.timestamp)
                self._counted.errors.labels(system_of(tick.error)).inc()

    def _count_janitor(self) -> None:
        key = dg.AssetKey([names.JANITOR])
        if self._reports is None:
            newest = self._instance.fetch_observations(key, limit=1).records
            self._reports = newest[0].storage_id if newest else 0
            return
        later = dg.AssetRecordsFilter(asset_key=key, after_storage_id=self._reports)
        for record in self._instance.fetch_observations(later, limit=JANITOR_REPORTS, ascending=True).records:
            self._reports = record.storage_id
            actions = record.asset_observation.metadata.get("actions") if record.asset_observation else None
            for row in actions.records if isinstance(actions, dg.TableMetadataValue) else ():
                action, result = str(row.data.get("what", "")), str(row.data.get("result", ""))
                self._counted.janitor_actions.labels(_action(action), _result(result)).inc()


def pipeline_of(run: dg.DagsterRun) -> str:
    """Whose models a run trains; `other`: none of ours."""
    of_job = pipeline_of_job(run.job_name)
    if of_job != families.OTHER:
        return of_job
    selected = sorted(list(key.path) for key in run.asset_selection or ())
    return next((path[0] for path in selected if path[1:] == [names.TRAINED_MODEL]), families.OTHER)


def pipeline_of_job(job: str) -> str:
    """The same by the name of its job alone."""
    ending = names.training_job("")
    return job.removesuffix(ending) if job.endswith(ending) and job != ending else families.OTHER


def system_of(error: SerializableErrorInfo | None) -> str:
    """Which system an error came from, by the first of its causes that is an error of ours."""
    causes: list[str] = []
    while error and len(causes) < 20:
        causes.append(error.cls_name or "")
        error = error.cause or error.context
    known = [cause for cause in causes if cause in _SYSTEM_OF_CLASS]
    return _SYSTEM_OF_CLASS[known[0]] if known else families.OTHER


def _classes(root: type[errors.OrchestratorError], system: str) -> Iterator[tuple[str, str]]:
    system = SYSTEMS.get(root, system)
    yield root.__name__, system
    for child in root.__subclasses__():
        yield from _classes(child, system)


_SYSTEM_OF_CLASS = dict(_classes(errors.OrchestratorError, "orchestrator"))


def _lag(sensor: SensorView) -> float:
    """New builds that are still to be read; of those at most so many are there."""
    try:
        cursor = Cursor.model_validate_json(sensor.cursor) if sensor.cursor else None
    except ValidationError:
        return 0  # its next tick fails, and says so
    jobs = cursor.jobs.values() if cursor else ()
    return float(sum(gap.high - gap.low + 1 for job in jobs for gap in job.unread if gap.launch))


def _is_expiring(record: RunRecord, now: float) -> bool:
    if record.start_time is None or now - record.start_time < SETTLED_SECONDS:
        return False
    try:
        until = datetime.fromisoformat(record.dagster_run.tags.get(names.RunTag.LEASE_UNTIL, ""))
    except ValueError:
        return False  # no training of ours, or not yet
    return until.timestamp() < now + EXPIRING_SECONDS


def _action(sentence: str) -> str:
    return next((label for begin, label in JANITOR_ACTIONS.items() if sentence.startswith(begin)), families.OTHER)


def _result(sentence: str) -> str:
    if sentence == "done":
        return "done"
    if sentence.startswith("dry run"):
        return "dry_run"
    return "not_done" if sentence in ("left for the next tick", "not needed any more") else "failed"
