"""However many values a metric has, memory holds what its curve needs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.pipeline.training.curves import MAX_POINTS, _drawable
from orchestrator.resources.mlflow.answers import MetricPoint
from orchestrator.resources.mlflow.history import HistoryThinner

points = st.builds(
    MetricPoint,
    value=st.floats() | st.integers(-5, 5).map(float),
    step=st.integers(-5, 50) | st.integers(-(2**63), 2**63 - 1),
    timestamp=st.integers(0, 100),
)


@given(history=st.lists(points, max_size=200), most=st.integers(2, 20), cut=st.integers(0, 200))
def test_first_last_lowest_and_highest_stay(history: list[MetricPoint], most: int, cut: int) -> None:
    thinner = HistoryThinner(most_buckets=most)
    thinner.add(history[:cut])
    thinner.add(history[cut:])
    kept = thinner.points()
    finite = [point for point in history if abs(point.value) < 1e300]
    assert len(kept) <= 4 * most
    assert {id(point) for point in kept} <= {id(point) for point in history}
    assert bool(kept) == bool(finite)
    if finite:
        assert min(point.value for point in kept) == min(point.value for point in finite)
        assert max(point.value for point in kept) == max(point.value for point in finite)
        assert kept[0].step == min(point.step for point in finite)
        assert kept[-1].step == max(point.step for point in finite)
    assert [point.step for point in kept] == sorted(point.step for point in kept)


def test_a_few_points_stay_as_they_are() -> None:
    history = [MetricPoint(1 / step, step, step) for step in range(1, 200)]
    thinner = HistoryThinner()
    thinner.add(reversed(history))
    assert thinner.points() == history


def many(count: int) -> Iterator[MetricPoint]:
    for step in range(count):
        yield MetricPoint(math.nan if step % 3 == 0 else math.sin(step), step, step)


@pytest.mark.parametrize("spike", [1, 77_777, 99_998])
def test_a_spike_is_drawn(spike: int) -> None:
    history = [MetricPoint(100.0 if step == spike else 0.0, step, step) for step in range(100_000)]
    drawn = _drawable(history)
    assert len(drawn) <= MAX_POINTS
    assert max(point.value for point in drawn) == 100
    assert (drawn[0].step, drawn[-1].step) == (0, 99_999)


def test_a_million_points_take_no_more_memory_than_a_thousand() -> None:
    thinner = HistoryThinner()
    thinner.add(many(200_000))
    assert len(thinner.points()) <= 1024
