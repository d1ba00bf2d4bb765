"""The deadline of a training as we keep it ourselves, out of reach of the training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

_log = logging.getLogger(__name__)

GRACE = timedelta(minutes=1)
"""Between the training's deadline and that of its machine: the time to fetch the last output and say why."""

_LOOK_SECONDS = 5.0
"""A wait does not count the time that our own host is suspended, so we never wait for longer."""

_AGAIN_SECONDS = 10.0
"""Between two tries to end what is late."""


def _now() -> float:
    """Seconds that nobody can set; on Linux, they go on while the host is suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True)
class Deadline:
    """When a training is over, by a clock of this process that nobody can set.

    Attributes:
        at: the same by the wall clock, as it was when this was made.
        minutes: what the training was given, from its launch on.
        grace: how long after that we wait for the training to be ended on its machine, before we end the machine.
    """

    at: datetime
    minutes: float
    grace: timedelta
    _over_at: float

    @classmethod
    def of(cls, at: datetime, *, minutes: float, grace: timedelta = GRACE) -> Self:
        """The deadline at this moment of the wall clock."""
        return cls(at, minutes, grace, _now() + (at - datetime.now(UTC)).total_seconds())

    @property
    def passed(self) -> bool:
        """Whether the training should have ended."""
        return _now() >= self._over_at

    @property
    def seconds_until_end(self) -> float:
        """Until the grace is over as well; negative: it is."""
        return self._over_at + self.grace.total_seconds() - _now()

    @property
    def over(self) -> bool:
        """Whether the grace is over as well."""
        return self.seconds_until_end <= 0

    def __str__(self) -> str:
        return describe(self.minutes)

    @contextmanager
    def kept(self, end: Callable[[], object], *, let_go: Callable[[], object]) -> Iterator[None]:
        """Keep it while the context is open, whatever the thread inside of it is waiting for.

        Args:
            end: ends what runs past the deadline and its grace; tried again until it succeeds or the context is left.
            let_go: called before that; makes the thread inside give up what it is waiting for.
        """
        left = threading.Event()

        def keep() -> None:
            while (seconds := self.seconds_until_end) > 0:
                if left.wait(min(seconds, _LOOK_SECONDS)):
                    return
            while not left.is_set():
                let_go()
                try:
                    end()
                    return
                except Exception as error:  # noqa: BLE001 - whatever it is, what is late must end: try again
                    _log.error(f"Could not end what {self}, trying again in {_AGAIN_SECONDS:g} s: {error}")
                left.wait(_AGAIN_SECONDS)

        threading.Thread(target=keep, name="deadline", daemon=True).start()
        try:
            yield
        finally:
            left.set()


def describe(minutes: float | None) -> str:
    """The words that every keeper of the deadline uses."""
    return "ran past its deadline" + ("" if minutes is None else f" of {minutes:g} min")
