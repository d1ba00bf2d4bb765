"""Whether the orchestrator can do its work: `/health/ready`, for load balancers, containers and people."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response

from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.dagster_view import DagsterView
from orchestrator.operate.web.refreshed import CachePolicy, Refreshed
from orchestrator.printable import printable

HEARTBEAT_SECONDS = 60.0
"""A daemon writes one every 30 s."""

MISSED_TICKS = 3
TICK_SECONDS = 60.0
"""What a tick may take: one that waits for a slow Jenkins is none that is missing."""

POLICY = CachePolicy(fresh=5, wait=4, stale=15)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MissingPart:
    """What keeps us from being ready.

    Attributes:
        component: for everybody, so that it names nothing of the installation's own.
        detail: for its admins, and the log.
    """

    component: str
    detail: str


NO_ANSWER = MissingPart("database", f"it has not answered within {POLICY.wait:g} s")


def missing_parts(view: DagsterView, now: float) -> Iterator[MissingPart]:
    """What is not as it must be.

    Args:
        view: Dagster.
        now: seconds since 1970.
    """
    locations = view.locations()
    if not locations:
        yield MissingPart("code location", "there is none in workspace.yaml")
    for name, reason in locations.items():
        if reason is not None:
            yield MissingPart("code location", f"{name} is not loaded: {printable(reason).strip()[:1000]}")
    try:
        heartbeats, sensors = view.heartbeats(), list(view.sensors())
    except Exception as error:  # noqa: BLE001 - Dagster's storage raises what its database driver does
        yield MissingPart("database", f"it cannot be read: {type(error).__name__}: {printable(str(error))[:500]}")
        return
    for kind, beat in heartbeats.items():
        if beat is None or now - beat > HEARTBEAT_SECONDS:
            yield MissingPart(f"daemon {kind}", f"its last heartbeat {_ago(beat, now)}")
    for sensor in sensors:
        patience = max(MISSED_TICKS * sensor.interval, TICK_SECONDS + sensor.interval)
        if sensor.is_on and (sensor.ticked_at is None or now - sensor.ticked_at > patience):
            component = "sensor of a pipeline" if sensor.pipeline else "sensor of the janitor"
            yield MissingPart(component, f"the last tick of {sensor.name} {_ago(sensor.ticked_at, now)}")


def _ago(moment: float | None, now: float) -> str:
    return "has not been yet" if moment is None else f"was {now - moment:.0f} s ago"


class HealthPage:
    """Answers `/health/ready`; what that costs the database does not depend on how often it is asked.

    Args:
        view: Dagster.
        policy: how long an answer is good.
        now: seconds since 1970.
    """

    def __init__(
        self, view: DagsterView, *, policy: CachePolicy = POLICY, now: Callable[[], float] = time.time
    ) -> None:
        self._view = view
        self._now = now
        self._parts = Refreshed(self._read, name="readiness", policy=policy)
        self._logged: frozenset[str] | None = None

    async def answer(self, caller: Caller | None) -> Response:
        """200 or 503, and what is missing; an admin learns why."""
        found = await self._parts.value()
        parts = (NO_ANSWER,) if found is None else found
        self._note(parts)
        content: dict[str, object] = {"status": "not ready" if parts else "ready"}
        if parts:
            content["missing"] = list(dict.fromkeys(part.component for part in parts))
            if caller and caller.role is Role.ADMIN:
                content["details"] = [f"{part.component}: {part.detail}" for part in parts]
        return JSONResponse(content, 503 if parts else 200, headers={"Cache-Control": "no-store"})

    def _read(self) -> Sequence[MissingPart]:
        return tuple(missing_parts(self._view, self._now()))

    def _note(self, parts: Sequence[MissingPart]) -> None:
        components = frozenset(part.component for part in parts)
        if components == self._logged:
            return
        if parts:
            _log.warning("Not ready: %s", "; ".join(f"{part.component}: {part.detail}" for part in parts))
        else:
            _log.info("Ready: database, code location, daemons and sensors")
        self._logged = components
