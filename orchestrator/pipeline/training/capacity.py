"""Waits for an instance that AWS does not have now: nothing costs money meanwhile, and the build keeps its place."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from orchestrator.errors import CapacityUnavailable, Ec2Error, QuotaUsedUp
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.retry import CapacityPolicy

_log = logging.getLogger(__name__)

_SLICE_SECONDS = 1.0
"""No single sleep is longer, so that a cancel ends the wait at once, whichever thread gets its signal."""


class CapacityWait:
    """The wait for one instance, over as many rounds of launch options as it takes.

    Args:
        ec2: tells which instances of ours use a quota up; with little patience, for we ask again.
        types: the instance types that are wanted.
        markets: likewise.
        policy: `total_seconds` is how long to wait; 0: not at all.
    """

    def __init__(self, ec2: Ec2, *, types: Collection[str], markets: Collection[str], policy: CapacityPolicy) -> None:
        self._ec2 = ec2
        self._types = types
        self._markets = markets
        self._policy = policy
        self._give_up_at: float | None = None
        self._failures = 0

    def pause(self, refusal: CapacityUnavailable) -> None:
        """Wait until another round makes sense.

        Args:
            refusal: how the last round ended.

        Raises:
            CapacityUnavailable: the patience is over.
        """
        patience = self._policy.total_seconds
        if not patience:
            raise refusal
        users = (self._users() or []) if isinstance(refusal, QuotaUsedUp) else []
        now = time.monotonic()
        if users or self._give_up_at is None:
            # One of these types did start under this quota, and its end makes room: that wait has an end of its own.
            self._give_up_at = now + patience
        if (left := self._give_up_at - now) <= 0:
            raise type(refusal)(
                f"{refusal}; waited {patience / 60:g} min for it: raise CAPACITY_PATIENCE_MINUTES to wait longer"
            )
        self._failures += 1
        seconds = min(self._policy.pause(self._failures), left)
        limit = "" if users else f", for {left / 60:.0f} min at most"
        _log.info(f"Waiting for {self._describe(refusal, users)}: asking again in {seconds:.0f} s{limit}")
        if self._sleep(seconds, users):
            self._failures = 0

    def _describe(self, refusal: CapacityUnavailable, users: Collection[Instance]) -> str:
        wanted = f"{', '.join(self._types)} ({', '.join(self._markets)})"
        if users:
            ids = ", ".join(user.id for user in users)
            return f"quota: {wanted} is used up by our own instances {ids}, until one of them ends"
        if isinstance(refusal, QuotaUsedUp):
            return f"quota: {wanted} is used up, by no such instance of ours"
        return f"capacity: AWS has no {wanted} now"

    def _sleep(self, seconds: float, users: Collection[Instance]) -> bool:
        """Sleep for so long; end early, with True, when one of these instances of ours has ended."""
        now = time.monotonic()
        end, next_look = now + seconds, now + self._policy.look_seconds
        while now < end:
            time.sleep(min(_SLICE_SECONDS, self._policy.look_seconds, end - now))
            now = time.monotonic()
            if users and now >= next_look:
                next_look = now + self._policy.look_seconds
                left = self._users()
                if left is not None and {user.id for user in users} - {user.id for user in left}:
                    return True
        return False

    def _users(self) -> list[Instance] | None:
        """Our own instances that surely count against the quota, by their tags; None when AWS does not say."""
        try:
            instances = self._ec2.find_all()
        except Ec2Error as error:
            _log.warning(f"Could not ask which instances use the quota: {error}")
            return None
        return [
            instance
            for instance in instances
            if instance.alive and instance.type in self._types and instance.market in self._markets
        ]
