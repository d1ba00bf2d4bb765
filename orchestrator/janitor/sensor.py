"""The janitor: a sensor that ends, every minute, what attempts have left behind when they could not do it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import dagster as dg

from orchestrator.errors import OrchestratorError
from orchestrator.janitor.actions import Hands, Outcome
from orchestrator.janitor.clients import Sight, Systems, read_pipelines
from orchestrator.janitor.dagster_runs import DagsterRuns
from orchestrator.janitor.rules import Action, decide, live_attempts
from orchestrator.janitor.snapshot import World
from orchestrator.pipeline.watched import WatchedPipelines
from orchestrator.settings.groups import JanitorSettings
from orchestrator.settings.source import Settings

KEY = dg.AssetKey(["janitor"])

GAP = timedelta(seconds=150)
"""Two ticks further apart than this: nobody was watching between them."""

# Dagster ends a tick after 60 s, and a last call that nobody answers takes its own time.
_ACT_SECONDS = 25.0


@dataclass(frozen=True)
class Watch:
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
        """The watch at a tick, from the cursor that the tick before has left."""
        try:
            before = json.loads(cursor or "{}")
            since, last = (datetime.fromisoformat(before[name]) for name in ("since", "last"))
            unbroken = timedelta(0) <= now - last <= GAP
        except (KeyError, TypeError, ValueError):  # none yet, or set by hand: begin anew
            return cls(since=now, last=now)
        return cls(since=since if unbroken else now, last=now, before=last)

    def cursor(self) -> str:
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
    """Make the janitor.

    Args:
        pipelines: which ones to watch, asked at each tick.
    """

    @dg.sensor(
        name="janitor",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Terminates instances, closes MLflow runs and fails Dagster runs that no live attempt owns.",
    )
    def janitor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, pipelines())

    return janitor


def _tick(context: dg.SensorEvaluationContext, watched: WatchedPipelines) -> dg.SensorResult:
    """One tick.

    Raises:
        SettingsError: JANITOR_DRY_RUN is neither true nor false.
        OrchestratorError: neither EC2 nor MLflow could be looked at, and there was nothing else to do.
    """
    act_until = time.monotonic() + _ACT_SECONDS
    dry_run = Settings().read(JanitorSettings).dry_run
    watch = Watch.at(datetime.now(UTC), context.cursor)
    repository = context.repository_def
    pipelines, faults = read_pipelines(watched.settings)
    if repository is None or not any(one.machine or one.mlflow for one in pipelines):
        missing = " ".join(faults) or "there is no pipeline: add a defs.yaml"
        return dg.SensorResult(skip_reason=f"nothing to watch: {missing}", cursor=watch.cursor())

    systems = Systems(pipelines)
    origin = context.code_location_origin
    runs = DagsterRuns(
        context.instance,
        repository,
        pipelines=[settings.pipeline for settings in watched.settings],
        location=origin.location_name if origin else None,
    )
    try:
        sight = systems.look()

        def world_of(seen: Sight) -> World:
            return World(
                deployments=systems.deployments,
                instances=tuple(seen.instances),
                instances_known=seen.instances_known,
                open_runs=tuple(seen.open_runs),
                runs=runs.read(seen),
                watching_since=watch.since,
                looked_before=watch.before,
            )

        def still_right(action: Action) -> bool:
            return action in decide(world_of(sight.of_partition(action.partition)), watch.last)

        world = world_of(sight)
        actions = decide(world, watch.last)
        if dry_run:
            outcomes = [Outcome(action, "dry run: not done") for action in actions]
        else:
            hands = Hands(systems, context.instance, context.log, still_right=still_right, until=act_until)
            outcomes = list(hands.perform(actions))
    finally:
        systems.close()
    for fault in sight.faults:
        context.log.error(fault)
    if sight.blind and not actions:
        raise OrchestratorError("the janitor sees nothing: " + "; ".join(sight.faults))
    summary = _summary(world, outcomes, [*faults, *sight.faults])
    return dg.SensorResult(
        skip_reason=summary,
        cursor=watch.cursor(),
        asset_events=[_observation(world, outcomes, sight, summary)] if outcomes else [],
    )


def _summary(world: World, outcomes: Sequence[Outcome], faults: Sequence[str]) -> str:
    counts = [
        _count(len(world.instances), "instance"),
        _count(live_attempts(world), "live attempt"),
        _count(len(world.open_runs), "open MLflow run"),
    ]
    told = "; ".join(f"{one.action} ({one.action.why}): {one.said}" for one in outcomes[:5])
    more = f"; and {len(outcomes) - 5} more" if len(outcomes) > 5 else ""
    unseen = f"; not all could be looked at: {' '.join(faults)}" if faults else ""
    return f"{', '.join(counts)}; {told or 'nothing to do'}{more}{unseen}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _observation(world: World, outcomes: Sequence[Outcome], sight: Sight, summary: str) -> dg.AssetObservation:
    rows = [dg.TableRecord({"what": str(one.action), "why": one.action.why, "result": one.said}) for one in outcomes]
    return dg.AssetObservation(
        KEY,
        description=summary,
        metadata={
            "actions": dg.MetadataValue.table(rows),
            "done": sum(one.said == "done" for one in outcomes),
            "failed": sum(one.failed for one in outcomes),
            "dry run": any(one.said.startswith("dry run") for one in outcomes),
            "instances": len(world.instances),
            "live attempts": live_attempts(world),
            "open MLflow runs": len(world.open_runs),
            "could not be looked at": dg.MetadataValue.json(sight.faults),
        },
    )
