"""The janitor on a host that sleeps: it ends no run that will renew its lease, and every one that will not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.janitor.rules import EndRun, decide
from orchestrator.janitor.sensor import JanitorCursor
from orchestrator.pipeline.training.lease import LEASE, RENEW_SECONDS
from orchestrator_tests.support.janitor_world import NOW, run, world

BEGUN = NOW
HOUR = 3600.0


def after(seconds: float) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


class Host:
    """One on which Dagster's daemon and a worker run; it sleeps once.

    Args:
        sleeps_at: when, in seconds since the worker began.
        asleep: for how many seconds; 0: not at all.
    """

    def __init__(self, *, sleeps_at: float = 0, asleep: float = 0) -> None:
        self.wakes_at = sleeps_at + asleep
        self._sleeps_at = sleeps_at
        self._asleep = asleep

    def moment(self, awake: float) -> float:
        """The time by the clock on the wall after so many seconds awake."""
        return awake if awake <= self._sleeps_at else awake + self._asleep

    def renewals(self, *, every: float, until: float = HOUR) -> Iterator[float]:
        """When a worker that dies at a time renews its lease."""
        count = int(HOUR / every)
        return (at for one in range(count) if (at := self.moment(one * every)) < until)

    def ticks(self, *, first: float) -> Iterator[float]:
        """When the janitor looks: the daemon asks every 5 s of being awake whether a minute has passed."""
        last = None
        for one in range(int(1200 / 5)):
            at = self.moment(first + one * 5)
            if last is None or at - last >= 60:
                yield (last := at)


def ended_at(host: Host, *, first: float, every: float, dies_at: float = HOUR) -> float | None:
    """When the janitor ends the run of a worker that renews its lease so often, if it does."""
    renewals = list(host.renewals(every=every, until=dies_at))
    cursor: str | None = JanitorCursor(since=after(-HOUR), last=after(first - 60)).dump()
    for tick in host.ticks(first=first):
        # The janitor may well be the first of the two to wake up.
        renewed = max(at for at in renewals if at < tick or at == 0)
        watch = JanitorCursor.at(after(tick), cursor)
        cursor = watch.dump()
        attempt = run("STARTED", started_at=BEGUN, lease_until=after(renewed) + LEASE)
        seen = world(attempt, watching_since=watch.since, looked_before=watch.before)
        if any(isinstance(action, EndRun) for action in decide(seen, watch.last)):
            return tick
    return None


phases = st.floats(0, 60)
rhythms = st.floats(RENEW_SECONDS, RENEW_SECONDS + 5)
sleeps = st.floats(1, 600)


@given(first=phases, every=rhythms, sleeps_at=sleeps, asleep=sleeps)
@example(first=5, every=RENEW_SECONDS, sleeps_at=10, asleep=120)
@example(first=0, every=RENEW_SECONDS, sleeps_at=29.9, asleep=74)
def test_a_worker_that_was_asleep_with_its_host_is_not_taken_for_dead(
    first: float, every: float, sleeps_at: float, asleep: float
) -> None:
    assert ended_at(Host(sleeps_at=sleeps_at, asleep=asleep), first=first, every=every) is None


@given(first=phases, every=rhythms, dies_at=sleeps)
def test_a_worker_that_died_is_noticed_within_three_minutes(first: float, every: float, dies_at: float) -> None:
    ended = ended_at(Host(), first=first, every=every, dies_at=dies_at)
    assert ended is not None
    assert ended - dies_at <= 170


@given(first=phases, every=rhythms, dies_at=sleeps, sleeps_at=sleeps, asleep=sleeps)
def test_so_is_one_whose_host_slept_and_not_later_than_that_after_it_woke(
    first: float, every: float, dies_at: float, sleeps_at: float, asleep: float
) -> None:
    host = Host(sleeps_at=sleeps_at, asleep=asleep)
    ended = ended_at(host, first=first, every=every, dies_at=dies_at)
    assert ended is not None
    assert ended - max(dies_at, host.wakes_at) <= 170
