"""Lines that a run logs, held back for a moment and written together."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster._core.events.log import EventLogEntry

HOLD_SECONDS = 0.5
"""A line is seen in the UI so much later; what a killed process has logged in this time is lost."""
MOST_LINES = 200

_log = logging.getLogger(f"dagster.{__name__}")


class LogLines:
    """Writes lines in order, together, before the next event or after `HOLD_SECONDS`.

    Args:
        insert: writes some events; is told whether some of them may be written already.
    """

    def __init__(self, insert: Callable[[Sequence[EventLogEntry], bool], None]) -> None:
        self._insert = insert
        self._forget()
        _all.add(self)

    def _forget(self) -> None:
        self._held: list[EventLogEntry] = []
        self._in_doubt = False  # of the lines, not of a thread: another one may write those that one has failed with
        self._writing = threading.RLock()
        self._timer: threading.Timer | None = None

    def add(self, line: EventLogEntry) -> None:
        """Take a line."""
        self._held.append(line)
        if len(self._held) >= MOST_LINES:
            self.write()
        elif self._timer is None:
            self._timer = threading.Timer(HOLD_SECONDS, self._write_late)
            self._timer.daemon = True
            self._timer.start()

    def write_with(self, event: EventLogEntry) -> None:
        """Write an event after the lines that were logged before it."""
        self._write(event)

    def write(self) -> None:
        """Write the lines now."""
        if self._held:
            self._write()

    def _write(self, *events: EventLogEntry) -> None:
        with self._writing:
            lines = self._held[:]  # others may add some meanwhile
            del self._held[: len(lines)]
            try:
                if lines or events:
                    self._insert([*lines, *events], self._in_doubt)
            except BaseException:
                self._held[:0] = lines[-MOST_LINES:]
                self._in_doubt = bool(lines)
                raise
            self._in_doubt = False

    def _write_late(self) -> None:
        self._timer = None
        try:
            self.write()
        except Exception:  # noqa: BLE001 - nobody awaits this thread
            _log.exception("Lost log lines: PostgreSQL was away for too long")


_all: weakref.WeakSet[LogLines] = weakref.WeakSet()
"""Not kept alive: a code server opens the storage anew for each tick of a sensor."""


def _forget_all() -> None:
    for lines in list(_all):
        lines._forget()


os.register_at_fork(after_in_child=_forget_all)  # the parent writes them
