"""What health and metrics read of Dagster without its promise: heartbeats, code locations, sensors.

`orchestrator_tests/operate/web/test_health.py` compares it with the Dagster that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME  # noqa: TID251 - see above
from dagster._core.definitions.run_request import InstigatorType  # noqa: TID251 - see above
from dagster._core.remote_representation.external import RemoteSensor  # noqa: TID251 - see above
from dagster._core.scheduler.instigation import (  # noqa: TID251 - see above
    InstigatorState,
    InstigatorTick,
    SensorInstigatorData,
    TickStatus,
)
from dagster._core.storage.runs.schema import RunsTable  # noqa: TID251 - see above
from dagster._core.storage.runs.sql_run_storage import db  # type: ignore[attr-defined]  # noqa: TID251 - SQLAlchemy
from dagster._core.workspace.context import WorkspaceProcessContext  # noqa: TID251 - see above
from dagster._utils.error import SerializableErrorInfo  # type: ignore[attr-defined]  # noqa: TID251 - see above

from orchestrator import names
from orchestrator.dagster_instance import sql_run_storage
from orchestrator.errors import SettingsError

_OF_A_PIPELINE = names.jenkins_sensor("")
_OF_A_DEPLOYMENT = names.deployment_sensor("")


@dataclass(frozen=True, kw_only=True)
class SensorView:
    """One of our sensors.

    Attributes:
        name: as in Dagster's UI.
        is_on: whether it is to tick.
        interval: least seconds between two ticks.
        ticked_at: when its last tick began, in seconds since 1970; None: it never did.
        cursor: what that has left.
        may_have_failed: its last tick was no success, or is under way.
        ids: Dagster's own, of origin and selector.
    """

    name: str
    is_on: bool
    interval: float
    ticked_at: float | None
    cursor: str | None
    may_have_failed: bool = False
    ids: tuple[str, str] = ("", "")

    @property
    def pipeline(self) -> str | None:
        """Whose builds it looks for; None: it is the janitor."""
        return self.name.removesuffix(_OF_A_PIPELINE) if self.name.endswith(_OF_A_PIPELINE) else None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Runs of one job that are alike.

    Attributes:
        status: by Dagster's name, such as QUEUED.
        count: how many.
        oldest: when the first of them was written down, in seconds since 1970.
        run_id: of the only one, where the job does not tell whose it is.
        run: that one, when it was not known yet.
    """

    job: str
    status: str
    count: int
    oldest: float
    run_id: str = ""
    run: dg.DagsterRun | None = None


MOST_READ = 500
"""Runs whose body is read in one look; the others are read in the next ones."""


class DagsterView:
    """Reads Dagster, with a query for each of these.

    Args:
        context: the webserver's.
    """

    def __init__(self, context: WorkspaceProcessContext) -> None:
        self._context = context
        self.instance = context.instance

    def heartbeats(self) -> Mapping[str, float | None]:
        """Each daemon that is required → its last heartbeat, in seconds since 1970; None: there is none."""
        beats = self.instance.get_daemon_heartbeats()
        return {
            kind: beats[kind].timestamp if kind in beats else None for kind in self.instance.get_required_daemon_types()
        }

    def locations(self) -> Mapping[str, str | None]:
        """Each code location → why it is not loaded; None: it is."""
        entries = self._context.get_current_workspace().code_location_entries
        return {
            name: None
            if entry.code_location
            else (entry.load_error.message if entry.load_error else "it is being loaded")
            for name, entry in entries.items()
        }

    def sensors(self) -> Iterator[SensorView]:
        """The janitor and the sensors of all pipelines."""
        for sensor, state in self._remote_sensors(lambda name: name == names.JANITOR or name.endswith(_OF_A_PIPELINE)):
            data = state.instigator_data
            ticks = (
                (data.last_tick_timestamp, data.last_tick_start_timestamp)
                if isinstance(data, SensorInstigatorData)
                else ()
            )
            yield SensorView(
                name=sensor.name,
                is_on=state.is_running,
                interval=sensor.min_interval_seconds,
                ticked_at=max((tick for tick in ticks if tick), default=None),
                cursor=data.cursor if isinstance(data, SensorInstigatorData) else None,
                may_have_failed=isinstance(data, SensorInstigatorData) and data.last_tick_success_timestamp is None,
                ids=(sensor.get_remote_origin_id(), sensor.selector_id),
            )

    def deployment_cursors(self) -> Iterator[tuple[str, str | None]]:
        """Each pipeline that has a deployment, and what its sensor has seen last."""
        for sensor, state in self._remote_sensors(lambda name: name.endswith(_OF_A_DEPLOYMENT)):
            data = state.instigator_data
            cursor = data.cursor if isinstance(data, SensorInstigatorData) else None
            yield sensor.name.removesuffix(_OF_A_DEPLOYMENT), cursor

    def _remote_sensors(self, wanted: Callable[[str], bool]) -> Iterator[tuple[RemoteSensor, InstigatorState]]:
        stored = {
            state.selector_id: state
            for state in self.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        }
        for entry in self._context.get_current_workspace().code_location_entries.values():
            if not entry.code_location:
                continue
            for repository in entry.code_location.get_repositories().values():
                for sensor in repository.get_sensors():
                    if wanted(sensor.name):
                        yield sensor, sensor.get_current_instigator_state(stored.get(sensor.selector_id))

    def failed_ticks(self, sensor: SensorView, *, after: float) -> Sequence[InstigatorTick]:
        """The ticks of a sensor that have failed since a moment."""
        return self.instance.get_ticks(*sensor.ids, after=after, statuses=[TickStatus.FAILURE], limit=MOST_READ)

    def steps(self, run_id: str) -> Iterator[tuple[str, str, float]]:
        """Key, outcome and seconds of each step of a run that has ended."""
        for step in self.instance.get_run_step_stats(run_id):
            if step.status and step.start_time and step.end_time:
                yield step.step_key, step.status.value.lower(), max(0.0, step.end_time - step.start_time)

    def step_errors(self, run_id: str) -> Iterator[SerializableErrorInfo]:
        """Why the steps of a run have failed."""
        for entry in self.instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            event = entry.dagster_event
            if event and event.step_failure_data.error:
                yield event.step_failure_data.error

    def runs(self, known: Collection[str]) -> Iterator[RunState]:
        """All runs; those of Dagster's own job over all assets one by one, because their body says whose they are.

        Args:
            known: IDs of those whose body is known.

        Raises:
            SettingsError: Dagster's storage is no database.
        """
        storage = sql_run_storage(self.instance)
        if storage is None:
            raise SettingsError(f"runs cannot be counted: {type(self.instance.run_storage).__name__} is no database")
        run = RunsTable.c
        is_of_assets = run.pipeline_name.startswith(IMPLICIT_ASSET_JOB_NAME, autoescape=True)
        named = (
            db.select(run.pipeline_name, run.status, db.func.count(), db.func.min(run.create_timestamp))
            .where(db.not_(is_of_assets))
            .group_by(run.pipeline_name, run.status)
        )
        of_assets = db.select(run.run_id, run.pipeline_name, run.status, run.create_timestamp).where(is_of_assets)
        with storage.connect() as connection:
            groups = connection.execute(named).all()
            singles = connection.execute(of_assets.order_by(run.id.desc())).all()
        for job, status, count, oldest in groups:
            yield RunState(job=job, status=status, count=count, oldest=_seconds(oldest))
        unknown = [run_id for run_id, *_ in singles if run_id not in known][:MOST_READ]
        bodies = self.instance.get_run_records(dg.RunsFilter(run_ids=unknown)) if unknown else ()
        by_id = {record.dagster_run.run_id: record.dagster_run for record in bodies}
        for run_id, job, status, created in singles:
            yield RunState(
                job=job, status=status, count=1, oldest=_seconds(created), run_id=run_id, run=by_id.get(run_id)
            )


def _seconds(moment: datetime) -> float:
    """Since 1970; Dagster writes UTC without saying so."""
    return moment.replace(tzinfo=UTC).timestamp()
