"""How patient we are: `RetryPolicy` as a value, and the one table of how patient we are with whom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import tenacity


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, how long and at what intervals a call is repeated. All times in seconds.

    Attributes:
        total_seconds: no try starts later than this after the first; 0: one try.
        connect_seconds: how long one connection may take.
        answer_seconds: how long one whole answer may take, its body included.
        first_pause_seconds: pause after the first failed try; it doubles each time, with some jitter.
        longest_pause_seconds: the longest pause, also when a `Retry-After` asks for more.
        max_attempts: the most tries; None: as many as fit into `total_seconds`.
    """

    total_seconds: float
    connect_seconds: float
    answer_seconds: float
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 10
    max_attempts: int | None = None

    def with_total(self, seconds: float) -> Self:
        """The same, but giving up after another time."""
        return replace(self, total_seconds=seconds)

    def retrying(self, *, retry: tenacity.retry_base, **options: Any) -> tenacity.Retrying:
        """A tenacity loop that keeps this policy and raises the last error.

        Args:
            retry: which outcomes are worth another try.
            options: what else `tenacity.Retrying` takes; `wait` replaces the pauses.
        """
        stop: tenacity.stop.stop_base = tenacity.stop_before_delay(self.total_seconds)
        if self.max_attempts is not None:
            stop |= tenacity.stop_after_attempt(self.max_attempts)
        pauses = tenacity.wait_random_exponential(multiplier=self.first_pause_seconds, max=self.longest_pause_seconds)
        return tenacity.Retrying(**{"retry": retry, "stop": stop, "wait": pauses, "reraise": True, **options})
