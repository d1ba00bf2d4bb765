"""What health and metrics read of Dagster without its promise: heartbeats, code locations, sensors.

`orchestrator_tests/operate/web/test_health.py` compares it with the Dagster that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dagster._core.definitions.run_request import InstigatorType  # noqa: TID251 - see above
from dagster._core.scheduler.instigation import SensorInstigatorData  # noqa: TID251 - see above
from dagster._core.workspace.context import WorkspaceProcessContext  # noqa: TID251 - see above

from orchestrator import names

_OF_A_PIPELINE = names.jenkins_sensor("")


@dataclass(frozen=True, kw_only=True)
class SensorView:
    """One of our sensors.

    Attributes:
        name: as in Dagster's UI.
        is_on: whether it is to tick.
        interval: least seconds between two ticks.
        ticked_at: when its last tick began, in seconds since 1970; None: it never did.
        cursor: what that has left.
    """

    name: str
    is_on: bool
    interval: float
    ticked_at: float | None
    cursor: str | None

    @property
    def pipeline(self) -> str | None:
        """Whose builds it looks for; None: it is the janitor."""
        return self.name.removesuffix(_OF_A_PIPELINE) if self.name.endswith(_OF_A_PIPELINE) else None


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
        stored = {
            state.selector_id: state
            for state in self.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        }
        for entry in self._context.get_current_workspace().code_location_entries.values():
            if not entry.code_location:
                continue
            for repository in entry.code_location.get_repositories().values():
                for sensor in repository.get_sensors():
                    if sensor.name != names.JANITOR and not sensor.name.endswith(_OF_A_PIPELINE):
                        continue
                    state = sensor.get_current_instigator_state(stored.get(sensor.selector_id))
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
                    )
