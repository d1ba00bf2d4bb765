"""A value that a thread of its own computes anew, so that no request waits for what does not answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachePolicy:
    """How long a value is good, all in seconds.

    Attributes:
        fresh: an older one is computed anew when somebody asks.
        wait: how long whoever asks waits for that.
        stale: an older one is none, when there is no newer one by then.
    """

    fresh: float
    wait: float
    stale: float


class Refreshed(Generic[T]):
    """Computed when somebody asks and the last value is too old; by one thread at a time, however many ask.

    The thread is a daemon: one that hangs in a system that does not answer keeps no process from ending.

    Args:
        compute: what it raises is logged, and leaves the last value as it is.
        name: what our messages call it.
        policy: how long a value is good.
        clock: seconds that only grow.

    Attributes:
        was_tried: it was computed once, or could not be.
    """

    def __init__(
        self, compute: Callable[[], T], *, name: str, policy: CachePolicy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._compute = compute
        self._name = name
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._computing: Future[None] | None = None
        self._value: T | None = None
        self._computed_at = float("-inf")
        self.was_tried = False
        self._fault: str | None = None

    def begin(self) -> Future[None] | None:
        """See that the value becomes fresh; None: it is."""
        with self._lock:
            if self._age() < self._policy.fresh:
                return None
            if self._computing is None:
                self._computing = Future()
                threading.Thread(target=self._run, args=(self._computing,), name=self._name, daemon=True).start()
            return self._computing

    def last(self) -> T | None:
        """What is known without waiting; None: nothing, or nothing that is still good."""
        return self._value if self._age() < self._policy.stale else None

    async def value(self) -> T | None:
        """The value; None: it could not be computed in time, and an earlier one is too old."""
        if computing := self.begin():
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(computing)), self._policy.wait)
        return self.last()

    def _age(self) -> float:
        return self._clock() - self._computed_at

    def _run(self, done: Future[None]) -> None:
        try:
            value = self._compute()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one who asks has it tried again
            fault = f"{type(error).__name__}: {error}"
            if fault != self._fault:
                _log.warning("Could not read %s: %s", self._name, fault)
            self._fault = fault
        else:
            self._value, self._computed_at, self._fault = value, self._clock(), None
        self.was_tried = True
        with self._lock:
            self._computing = None
        done.set_result(None)
