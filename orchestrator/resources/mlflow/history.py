"""The history of a metric, thinned out while it is read: what a curve needs, however many points there are."""

from __future__ import annotations

import math
from collections.abc import Iterable

from orchestrator.resources.mlflow.answers import MetricPoint

MOST_BUCKETS = 256
"""Of neighbouring steps; each keeps four points at most, so a picture of 400 pixels loses nothing."""

INFINITE = 1e300
"""MLflow's databases store infinity as the largest float."""


class HistoryThinner:
    """Keeps the first, the last, the lowest and the highest point of each bucket of steps.

    A bucket holds one step at first. When there are too many buckets, each two neighbours become one. NaN and
    infinity, which no curve can show, are left out.

    Args:
        most_buckets: two or more, because steps on both sides of 0 never share one.
    """

    def __init__(self, *, most_buckets: int = MOST_BUCKETS) -> None:
        self._most_buckets = most_buckets
        self._width = 1
        self._buckets: dict[int, _Bucket] = {}

    def add(self, points: Iterable[MetricPoint]) -> None:
        """Take some more points, in any order."""
        for point in points:
            if not math.isfinite(point.value) or abs(point.value) >= INFINITE:
                continue
            key = point.step // self._width
            if (bucket := self._buckets.get(key)) is not None:
                bucket.add(point)
                continue
            self._buckets[key] = _Bucket(point)
            while len(self._buckets) > self._most_buckets:
                self._halve()

    def points(self) -> list[MetricPoint]:
        """What was kept, in order of step and time."""
        kept = {id(point): point for bucket in self._buckets.values() for point in bucket.points()}
        return sorted(kept.values(), key=_order)

    def _halve(self) -> None:
        self._width *= 2
        merged: dict[int, _Bucket] = {}
        for bucket in self._buckets.values():
            for point in bucket.points():
                key = point.step // self._width
                if key in merged:
                    merged[key].add(point)
                else:
                    merged[key] = _Bucket(point)
        self._buckets = merged


class _Bucket:
    __slots__ = ("first", "highest", "last", "lowest")

    def __init__(self, point: MetricPoint) -> None:
        self.first = self.last = self.lowest = self.highest = point

    def add(self, point: MetricPoint) -> None:
        if _order(point) < _order(self.first):
            self.first = point
        if _order(point) >= _order(self.last):
            self.last = point
        if point.value < self.lowest.value:
            self.lowest = point
        if point.value > self.highest.value:
            self.highest = point

    def points(self) -> tuple[MetricPoint, ...]:
        return (self.first, self.lowest, self.highest, self.last)


def _order(point: MetricPoint) -> tuple[int, int]:
    return point.step, point.timestamp
