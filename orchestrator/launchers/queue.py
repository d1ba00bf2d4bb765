"""Dagster's queue of runs, which holds back what no worker has a slot for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig


@runtime_checkable
class HasSlots(Protocol):
    """A launcher whose workers take so many runs at once and no more."""

    def slots(self) -> int:
        """How many runs all its workers together can take, those that they have included."""


class Queue(QueuedRunCoordinator[Any]):
    """Dagster's own, with one more limit: what the launcher's workers can take.

    A run that waits in a broker counts as starting: after `start_timeout_seconds` Dagster takes it for dead, its
    priority does nothing, and it cannot be cancelled in peace. So it waits here, also while there is no broker at all.
    """

    def get_run_queue_config(self) -> RunQueueConfig:
        """Its configuration; `concurrency.runs.max_concurrent_runs` in dagster.yaml would replace our limit."""
        config = super().get_run_queue_config()
        return config._replace(max_concurrent_runs=_Limit.of(config.max_concurrent_runs, slots=self._slots))

    def _slots(self) -> int | None:
        launcher = self._instance.run_launcher
        return launcher.slots() if isinstance(launcher, HasSlots) else None


class _Limit(int):
    """A limit whose workers are asked where it is compared with what runs: by the queue, and by no run or page.

    All of them read the configuration, and asking takes a second.
    """

    _slots: Callable[[], int | None]

    @classmethod
    def of(cls, limit: int, *, slots: Callable[[], int | None]) -> _Limit:
        made = cls(sys.maxsize if limit == -1 else limit)
        made._slots = slots
        return made

    def __sub__(self, under_way: int) -> int:
        return self._now() - under_way

    def __str__(self) -> str:  # in the queue's log
        return str(self._now())

    def _now(self) -> int:
        slots = self._slots()
        return int(self) if slots is None else min(int(self), slots)
