"""The sign of life of an attempt: for as long as it renews its lease, nobody else touches what it works on.

A run worker that is killed tells nobody, and Dagster's default launcher does not look after it. So a live
attempt renews the tag `orchestrator:lease-until` on its instance, and the same on its Dagster run (there is a
time before and after the instance). The janitor treats an attempt whose lease has expired as dead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_log = logging.getLogger(__name__)

LEASE = timedelta(seconds=100)
"""How long a lease lasts: two renewals may fail, and what a dead attempt left is looked after within 3 minutes."""

RENEW_SECONDS = 30.0


def until(now: datetime | None = None) -> datetime:
    """When a lease that is renewed now expires."""
    return (now or datetime.now(UTC)) + LEASE


@contextmanager
def renewed(renew: Callable[[], None], *, every_seconds: float = RENEW_SECONDS) -> Iterator[None]:
    """Renew a lease now and again, in a thread, for as long as the context is open.

    Args:
        renew: writes the new end of the lease; what it cannot write this time, it writes the next time.
        every_seconds: between two renewals.
    """
    ended = threading.Event()

    def keep_renewing() -> None:
        while True:
            try:
                renew()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next renewal may succeed; else it expires
                _log.warning(f"Lease not renewed, trying again in {every_seconds:g} s: {error}")
            if ended.wait(every_seconds):
                return

    thread = threading.Thread(target=keep_renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
