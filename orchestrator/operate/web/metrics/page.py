"""Answers `/metrics`: scraping costs nothing, because what is read is read in threads of its own, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from orchestrator.operate.web.dagster_view import DagsterView
from orchestrator.operate.web.metrics import families
from orchestrator.operate.web.metrics.families import MetricSource
from orchestrator.operate.web.refreshed import CachePolicy, Refreshed

VERSIONS = frozenset({"0.0.4", "1.0.0"})
"""Of the formats that are written here, all of which Prometheus reads."""

Look = Callable[[], Sequence[GaugeMetricFamily]]

POLICIES: Mapping[MetricSource, CachePolicy] = {
    MetricSource.DAGSTER: CachePolicy(fresh=15, wait=5, stale=60),
    # Nobody waits for AWS or MLflow: the first scrape has nothing of them yet.
    MetricSource.EC2: CachePolicy(fresh=60, wait=0, stale=180),
    MetricSource.MLFLOW: CachePolicy(fresh=300, wait=0, stale=900),
}


class MetricsPage:
    """Answers `/metrics`.

    Args:
        looks: how each source is looked at.
        counted: what is counted since this process began.
        policies: how long each look is good.
    """

    def __init__(
        self,
        looks: Mapping[MetricSource, Look],
        counted: families.Accumulated,
        *,
        policies: Mapping[MetricSource, CachePolicy] = POLICIES,
    ) -> None:
        self._counted = counted
        self._sources = {
            source: Refreshed(look, name=f"metrics of {source}", policy=policies[source])
            for source, look in looks.items()
        }

    @classmethod
    def of(cls, view: DagsterView) -> MetricsPage:
        """That of a served Dagster."""
        from orchestrator.operate.web.metrics.of_dagster import DagsterMetrics  # the two ask for more than a page does

        counted = families.Accumulated()
        dagster = DagsterMetrics(view, counted)
        return cls(
            {
                MetricSource.DAGSTER: dagster.look,
                MetricSource.EC2: _ec2_look(),
                MetricSource.MLFLOW: _budget_look,
            },
            counted,
        )

    async def answer(self, accept: str) -> Response:
        """The metrics, in the format that the scraper understands.

        Args:
            accept: its header of that name.
        """
        gauges: list[Metric] = []
        up: dict[tuple[str, ...], float] = {}
        for source, value in self._sources.items():
            found = await value.value()
            if found is not None or value.was_tried:
                up[(source.value,)] = float(found is not None)
            gauges += found or ()
        gauges.append(families.SOURCE_UP.family(up))
        encode, content_type = choose_encoder(_understood(accept))
        text = await run_in_threadpool(encode, _Exposition([*gauges, *self._counted.registry.collect()]))
        return Response(text, headers={"Content-Type": content_type, "Cache-Control": "no-store"})


def _understood(accept: str) -> str:
    """The offers of an `Accept` that prometheus-client can answer.

    It compares versions without a look whether they are numbers, and answers with whichever it is asked for.
    """
    offers = [offer.split(";") for offer in accept.split(",")]
    known = [
        [kind, *options]
        for kind, *options in offers
        if all(
            value.strip() in VERSIONS
            for name, _, value in (option.partition("=") for option in options)
            if name.strip() == "version"
        )
    ]
    return ",".join(";".join(part.strip() for part in offer) for offer in known)


class _Exposition(Collector):
    """What an encoder of prometheus-client takes."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _ec2_look() -> Look:
    metrics: list[Look] = []

    def look() -> Sequence[GaugeMetricFamily]:
        if not metrics:
            from orchestrator.operate.web.metrics.of_cloud import Ec2Metrics  # boto3, for those who scrape only

            metrics.append(Ec2Metrics().look)
        return metrics[0]()

    return look


def _budget_look() -> Sequence[GaugeMetricFamily]:
    from orchestrator.operate.web.metrics.of_cloud import look_at_budget

    return look_at_budget()
