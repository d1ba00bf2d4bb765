"""How a worker leaves: its runs die at once, untouched, and the broker says so; another worker takes them over."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

from celery.worker.consumer import Consumer
from celery.worker.state import active_requests

from orchestrator.launchers.celery import AWAY

_log = logging.getLogger(__name__)


class LeavingConsumer(Consumer):  # type: ignore[misc]
    """Celery's own, which cancels what runs when its worker is asked to end: that would terminate the instances."""

    def cancel_active_requests(self) -> None:
        """Leave the runs of this worker to others."""
        requests = list(active_requests)
        for request in requests:
            if request.worker_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(request.worker_pid, signal.SIGKILL)
        for request in requests:
            _log.warning("Left run %s to another worker", request.id, extra={"run_id": request.id})
            with contextlib.suppress(*AWAY):
                self.app.backend.store_result(request.id, RuntimeError("its worker was stopped"), "FAILURE")
