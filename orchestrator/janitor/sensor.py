"""The janitor: a sensor that ends, every minute, what attempts have left behind when they could not do it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import location_name, logged_to_tick
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.janitor.actions import ActionExecutor, ActionResult
from orchestrator.janitor.clients import THREADS, Clients, machine_of_environment, read_pipelines
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.rules import (
    Action,
    CloseRun,
    EndRun,
    RetryRun,
    Terminate,
    decide,
    live_attempts,
    missing_late,
)
from orchestrator.janitor.snapshot import Snapshot
from orchestrator.pipeline.watched import WatchedPipelines
from orchestrator.resources.ec2 import tag_value
from orchestrator.settings.groups import JanitorSettings
from orchestrator.settings.source import SettingsSource

_log = logging.getLogger(__name__)

KEY = dg.AssetKey([names.JANITOR])

GAP = timedelta(seconds=150)
"""Two ticks further apart than this: nobody was watching between them."""

# Seconds since a tick began. Dagster ends one after 60 s, and what is begun last takes up to 20 s if nobody answers.
_ACT_SECONDS = 20.0
"""After this, no instance and no Dagster run is ended any more."""
_ASK_MLFLOW_SECONDS = 25.0
"""After this, MLflow is not asked any more: what costs money comes first."""
_CLOSE_SECONDS = 35.0
"""After this, no MLflow run is closed any more."""


@dataclass(frozen=True)
class JanitorCursor:
    """Since when the janitor looks without a gap; kept in the sensor's cursor.

    Attributes:
        since: its first tick, or the first after a gap.
        last: its latest tick.
        before: the tick before that; None: the latest is the first.
    """

    since: datetime
    last: datetime
    before: datetime | None = None

    @classmethod
    def at(cls, now: datetime, cursor: str | None) -> Self:
        """The cursor of a tick, from the one that the tick before has left."""
        try:
            before = json.loads(cursor or "{}")
            since, last = (datetime.fromisoformat(before[name]) for name in ("since", "last"))
            unbroken = timedelta(0) <= now - last <= GAP
        except (KeyError, TypeError, ValueError):  # none yet, or set by hand: begin anew
            return cls(since=now, last=now)
        return cls(since=since if unbroken else now, last=now, before=last)

    def dump(self) -> str:
        """As the next tick reads it."""
        return json.dumps({"since": self.since.isoformat(), "last": self.last.isoformat()})


janitor_spec = dg.AssetSpec(
    KEY,
    description="What the janitor has ended: instances, MLflow runs and Dagster runs that no live attempt owned. "
    "Each observation is one tick that had something to do.",
    kinds={"ec2", "mlflow"},
    group_name="janitor",
)
"""The external asset whose observations are the janitor's reports."""


def janitor_sensor(pipelines: Callable[[], WatchedPipelines]) -> dg.SensorDefinition:
    """The janitor of a code location.

    Args:
        pipelines: which ones to watch, asked at each tick.
    """

    @dg.sensor(
        name=names.JANITOR,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Terminates instances, closes MLflow runs and fails Dagster runs that no live attempt owns.",
    )
    def janitor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """One tick.

        Raises:
            SettingsError: JANITOR_DRY_RUN is neither true nor false.
            OrchestratorError: neither EC2 nor MLflow could be looked at, and there was nothing else to do.
        """
        with logged_to_tick(context, threads=THREADS):
            return _tick(context, pipelines())

    return janitor


def _tick(context: dg.SensorEvaluationContext, watched: WatchedPipelines) -> dg.SensorResult:
    begun = time.monotonic()
    dry_run = SettingsSource().read(JanitorSettings).dry_run
    cursor = JanitorCursor.at(datetime.now(UTC), context.cursor)
    repository = context.repository_def
    pipelines, faults = read_pipelines(watched)
    machines = []
    if watched.broken:  # their machines, if the environment and not their defs.yaml says of which deployment they are
        try:
            machines.append(machine_of_environment())
        except SettingsError as error:
            faults.append(str(error))
    if repository is None or not (machines or any(pipeline.machine or pipeline.mlflow for pipeline in pipelines)):
        missing = " ".join(faults) or "there is no pipeline: add a defs.yaml"
        return dg.SensorResult(skip_reason=f"nothing to watch: {missing}", cursor=cursor.dump())

    clients = Clients(pipelines, machines)
    runs = DagsterRuns(
        context.instance,
        repository,
        pipelines=[settings.pipeline for settings in watched.settings],
        broken=watched.broken,
        location=location_name(context),
    )
    nothing_seen = Snapshot(
        deployments=clients.deployments,
        pipelines=frozenset(tag_value(settings.pipeline) for settings in watched.settings),
        broken=frozenset(map(tag_value, watched.broken)),
        watching_since=cursor.since,
        looked_before=cursor.before,
    )
    tick = _Tick(context.instance, clients, runs, nothing_seen, now=cursor.last, dry_run=dry_run)
    try:
        tick.end_runs_and_instances(until=begun + _ACT_SECONDS)
        if time.monotonic() < begun + _ASK_MLFLOW_SECONDS:
            tick.close_mlflow_runs(until=begun + _CLOSE_SECONDS)
        else:
            tick.faults.append("MLflow was not asked: there was no time left in this tick.")
    finally:
        clients.close()
    for fault in tick.faults:
        _log.error(f"Could not look everywhere: {fault}")
    if tick.blind and not tick.results:
        raise OrchestratorError("the janitor sees nothing: " + "; ".join(tick.faults))
    summary = _summary(tick.snapshot, tick.results, [*faults, *tick.faults])
    return dg.SensorResult(
        skip_reason=summary,
        cursor=cursor.dump(),
        asset_events=[_observation(tick.snapshot, tick.results, tick.faults, summary)] if tick.results else [],
    )


class _Tick:
    """One tick's looks, decisions and actions.

    Attributes:
        snapshot: what has been seen so far.
        results: what became of each action.
        faults: a sentence for each system that could not be looked at.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        clients: Clients,
        runs: DagsterRuns,
        nothing_seen: Snapshot,
        *,
        now: datetime,
        dry_run: bool,
    ) -> None:
        self.snapshot = nothing_seen
        self.results: list[ActionResult] = []
        self.faults: list[str] = []
        self._clients = clients
        self._runs = runs
        self._now = now
        self._dry_run = dry_run
        self._executor = ActionExecutor(clients, instance, still_right=self._still_right)
        self._asked = 0

    @property
    def blind(self) -> bool:
        """Whether none of those that were asked has answered."""
        return bool(self.faults) and len(self.faults) >= self._asked

    def end_runs_and_instances(self, *, until: float) -> None:
        """Look at EC2 and Dagster, and act on that at once: an MLflow that is away must cost no instance minute."""
        instances = self._clients.instances()
        self.faults += instances.faults
        self._asked += instances.asked
        seen = replace(self.snapshot, instances=instances.found, instances_known=not instances.faults)
        seen = replace(seen, runs=self._runs.read(seen.owners, seen.partitions))
        hidden = self._clients.disguised(missing_late(seen, self._now))
        self.faults += hidden.faults
        self.snapshot = replace(seen, disguised=hidden.found)
        self._act(decide(self.snapshot, self._now), until=until)

    def close_mlflow_runs(self, *, until: float) -> None:
        """Look at MLflow, and close what no attempt fills any more."""
        open_runs = self._clients.open_runs()
        self.faults += open_runs.faults
        self._asked += open_runs.asked
        if not open_runs.found:
            return
        seen = replace(self.snapshot, open_runs=open_runs.found)
        # A run that is known from the look before, and not read again, can only make us leave more alone.
        known = {run.id: run for run in (*seen.runs, *self._runs.read_builds(seen.owners, seen.partitions))}
        self.snapshot = replace(seen, runs=tuple(known.values()))
        closings = [action for action in decide(self.snapshot, self._now) if isinstance(action, CloseRun)]
        self._act(closings, until=until)

    def _act(self, actions: Sequence[Action], *, until: float) -> None:
        if self._dry_run:
            self.results += [ActionResult(action, "dry run: not done") for action in actions]
        else:
            self.results += self._executor.run(actions, until=until)

    def _still_right(self, action: Action) -> bool:
        """Decide again about one action, with its own Dagster runs as they are now."""
        seen = self.snapshot.of_partition(action.partition)
        if isinstance(action, EndRun | RetryRun):
            runs = self._runs.read_run(action.run.id)
        else:
            late = frozenset(action.late_runs) if isinstance(action, Terminate) else frozenset()
            runs = self._runs.read_builds(seen.owners | late, seen.partitions)
        return action in decide(replace(seen, runs=runs), self._now)


def _summary(snapshot: Snapshot, results: Sequence[ActionResult], faults: Sequence[str]) -> str:
    counts = [
        _count(len(snapshot.instances), "instance"),
        _count(live_attempts(snapshot), "live attempt"),
        _count(len(snapshot.open_runs), "open MLflow run"),
    ]
    actions = "; ".join(f"{result.action} ({result.action.why}): {result.summary}" for result in results[:5])
    remaining = f"; and {len(results) - 5} more" if len(results) > 5 else ""
    broken = f"; cannot be read: {', '.join(sorted(snapshot.broken))}" if snapshot.broken else ""
    unseen = f"; not all could be looked at: {' '.join(faults)}" if faults else ""
    return f"{', '.join(counts)}; {actions or 'nothing to do'}{remaining}{broken}{unseen}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _observation(
    snapshot: Snapshot, results: Sequence[ActionResult], faults: Sequence[str], summary: str
) -> dg.AssetObservation:
    rows = [
        dg.TableRecord({"what": str(result.action), "why": result.action.why, "result": result.summary})
        for result in results
    ]
    return dg.AssetObservation(
        KEY,
        description=summary,
        metadata={
            "actions": dg.MetadataValue.table(rows),
            "done": sum(result.summary == "done" for result in results),
            "failed": sum(result.failed for result in results),
            "dry run": any(result.summary.startswith("dry run") for result in results),
            "instances": len(snapshot.instances),
            "live attempts": live_attempts(snapshot),
            "open MLflow runs": len(snapshot.open_runs),
            "could not be looked at": dg.MetadataValue.json(list(faults)),
        },
    )
