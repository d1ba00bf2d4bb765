"""Calls of a storage are repeated while PostgreSQL is away, so that an outage of a minute costs no training."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import tenacity

from orchestrator.resources.retry import RetryPolicy
from orchestrator.storage.faults import passes

_log = logging.getLogger(f"dagster.{__name__}")
"""Not among `python_logs`: what it says would become an event, which would need the database that is away."""


class Patience:
    """How patient the storages of one instance are; each thread has its own tries.

    Attributes:
        policy: may be replaced at any time.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self._of_thread = threading.local()

    @property
    def is_repeating(self) -> bool:
        """Whether this thread's call has failed before: what it writes may be there already."""
        return getattr(self._of_thread, "tries", 0) > 1

    def call(self, function: Callable[[], Any]) -> Any:
        """Call until it succeeds, or fails for a reason that stays, or the policy's time is over."""
        if getattr(self._of_thread, "tries", 0):
            return function()  # within another call, which is repeated as a whole
        retrying = self.policy.retrying(retry=tenacity.retry_if_exception(passes), before_sleep=self._report)

        def attempt() -> Any:
            self._of_thread.tries += 1
            return function()

        self._of_thread.tries = 0
        try:
            return retrying(attempt)
        finally:
            self._of_thread.tries = 0

    def _report(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1:
            _log.warning("Waiting for PostgreSQL: %s", " ".join(str(getattr(error, "orig", error)).split()))


class Patient:
    """A mixin: the public methods of a storage, but for those that hand out connections, are repeated.

    Attributes:
        patience: set before the first call.
    """

    patience: Patience

    def __init_subclass__(cls, *, of: type, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _repeated(of):
            setattr(cls, name, _patiently(getattr(cls, name)))


NEVER_REPEATED = frozenset(
    {
        "store_event",  # repeats its INSERT by itself: the lines before it must not be lost
        "store_event_batch",  # likewise
        *("connect", "run_connection", "index_connection", "index_transaction"),
        *(
            "register_instance",
            "dispose",
            "watch",
            "end_watch",
            "optimize_for_webserver",
            "upgrade",
            "optimize",
            "migrate",
        ),
        *("from_config_value", "config_type", "alembic_version", "wipe", "get_event_log_table_data"),
    }
)


def _repeated(base: type) -> Iterable[str]:
    """The names of a storage's methods, as Dagster's abstract class has them."""
    for name in dir(base):
        method = getattr(base, name)
        if (
            not name.startswith("_")
            and name not in NEVER_REPEATED
            and callable(method)
            and not isinstance(method, type)
        ):
            yield name


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def patient(self: Patient, *arguments: Any, **options: Any) -> Any:
        return self.patience.call(lambda: method(self, *arguments, **options))

    return patient
