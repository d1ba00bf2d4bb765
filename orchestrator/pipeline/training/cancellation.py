"""A cancel that the run's worker was not told of, because the code server that tells it was away."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from dagster import DagsterRunStatus


class Cancellation:
    """Notices, with each renewal of the lease, that the run was cancelled, and interrupts the main thread once.

    Dagster's code server does so at once, by the same signal; a second one in the middle of the cleaning up would do
    harm. So a run that is being cancelled is left alone at the first look.

    Args:
        status: what Dagster says of the run now; None when it does not know it.
        ending: whether the main thread has begun to clean up.
        interrupt: does it; default: SIGINT, as in Dagster's own run_cancellation_thread.py.
    """

    def __init__(
        self,
        *,
        status: Callable[[], DagsterRunStatus | None],
        ending: Callable[[], bool],
        interrupt: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT),
    ) -> None:
        self._status = status
        self._ending = ending
        self._interrupt = interrupt
        self._noticed = False
        self._interrupted = False

    def look(self) -> None:
        """Look once more."""
        status = self._status()
        overdue = status == DagsterRunStatus.CANCELED or (status == DagsterRunStatus.CANCELING and self._noticed)
        self._noticed = status == DagsterRunStatus.CANCELING
        if overdue and not self._interrupted and not self._ending():
            self._interrupted = True
            self._interrupt()
