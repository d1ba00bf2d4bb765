"""What lives as long as one Dagster run: its attempts, its lease, and who notices its cancel."""

# No `from __future__ import annotations` here: Dagster reads the annotations of resources as objects.
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import dagster as dg
from pydantic import PrivateAttr

from orchestrator import names
from orchestrator.dagster_instance import add_run_tags
from orchestrator.pipeline.training import lease
from orchestrator.pipeline.training.attempt import Attempt
from orchestrator.pipeline.training.cancellation import Cancellation
from orchestrator.resources.ec2 import timestamp


class TrainingAttempts(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Holds this Dagster run's attempt over all of its steps, and leaves nothing of it behind.

    Needs the in-process executor: one process, and so one instance of this resource, for all steps.
    """

    _attempts: dict[str, Attempt] = PrivateAttr(default_factory=dict)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Self]:
        """Renew the run's lease, and close every attempt when the run ends.

        A cancel between two steps is seen nowhere else.
        """
        instance, run = context.instance, context.run
        if instance is None or run is None:
            raise RuntimeError("attempts belong to a Dagster run")

        left = threading.Event()

        def status() -> dg.DagsterRunStatus | None:
            found = instance.get_run_by_id(run.run_id)
            return found.status if found else None

        def ending() -> bool:
            return left.is_set() or any(attempt.ending for attempt in self._attempts.values())

        cancellation = Cancellation(status=status, ending=ending)

        def renew() -> None:
            add_run_tags(instance, run.run_id, {names.RunTag.LEASE_UNTIL: timestamp(lease.until())})
            cancellation.look()

        with lease.renewed(renew, every_seconds=lease.RENEW_SECONDS):
            try:
                yield self
            finally:
                left.set()
                for attempt in self._attempts.values():
                    attempt.close()

    def of(self, pipeline: str, make: Callable[[], Attempt]) -> Attempt:
        """The attempt of this pipeline, made at the first call."""
        if pipeline not in self._attempts:
            self._attempts[pipeline] = make()
        return self._attempts[pipeline]
