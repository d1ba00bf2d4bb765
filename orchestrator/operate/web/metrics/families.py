"""Every metric that there is. No label holds a build's number, or anything else that has no end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily


class MetricSource(StrEnum):
    """Where a metric is read."""

    DAGSTER = "dagster"
    EC2 = "ec2"
    MLFLOW = "mlflow"


STAGE_SECONDS = (1, 5, 15, 60, 180, 600, 1800, 3600, 3 * 3600, 12 * 3600)

OTHER = "other"
"""The label of what is none of ours."""

Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class GaugeSpec:
    """A gauge; its samples are made anew at each look.

    Attributes:
        labels: their names.
    """

    name: str
    meaning: str
    labels: tuple[str, ...] = ()

    def family(self, samples: Samples | float | None) -> GaugeMetricFamily:
        """As prometheus-client writes it.

        Args:
            samples: values of the labels → value; a number where there are no labels; None: there is none.
        """
        family = GaugeMetricFamily(self.name, self.meaning, labels=self.labels)
        by_labels: Iterable[tuple[tuple[str, ...], float]] = ()
        if samples is not None:
            by_labels = samples.items() if isinstance(samples, Mapping) else [((), samples)]
        for labels, value in by_labels:
            family.add_metric(labels, value)
        return family


READY = GaugeSpec("orchestrator_ready", "1: what /health/ready asks for is there; 0: it is not")
SOURCE_UP = GaugeSpec(
    "orchestrator_source_up",
    "1: the last look at dagster, ec2 or mlflow was answered in time; 0: it was not",
    ("source",),
)
RUNS = GaugeSpec("orchestrator_runs", "Runs in Dagster's database, as they are now", ("pipeline", "status"))
OLDEST_QUEUED = GaugeSpec(
    "orchestrator_oldest_queued_seconds", "Age of the oldest run that waits in the queue; 0: none does", ("pipeline",)
)
LEASES_EXPIRING = GaugeSpec(
    "orchestrator_leases_expiring",
    "Runs under way whose lease ends within 30 s, or has ended: their worker may be dead",
    ("pipeline",),
)
HEARTBEAT_AGE = GaugeSpec(
    "orchestrator_daemon_heartbeat_age_seconds",
    "Seconds since the last heartbeat of each daemon that is required",
    ("daemon",),
)
SENSOR_ON = GaugeSpec("orchestrator_sensor_on", "1: the sensor is switched on; 0: it is not", ("sensor",))
TICK_AGE = GaugeSpec(
    "orchestrator_sensor_tick_age_seconds",
    "Seconds since the last tick of a sensor that is switched on began",
    ("sensor",),
)
SENSOR_LAG = GaugeSpec(
    "orchestrator_sensor_lag_builds",
    "New builds, at most, that the sensor knows of and has not read yet, to train them",
    ("pipeline",),
)
CHAMPION_WAITS = GaugeSpec(
    "orchestrator_champion_waits",
    "1: the champion is not in use in the pipeline's target: it waits for a deployment, or for approval; 0: it is",
    ("pipeline",),
)
INSTANCES = GaugeSpec(
    "orchestrator_instances",
    "Instances of this deployment that still cost money",
    ("pipeline", "instance_type", "market", "state"),
)
USD_PER_HOUR = GaugeSpec(
    "orchestrator_instances_usd_per_hour",
    "What these instances cost an hour in USD, without their volumes, as far as their prices are known",
    ("pipeline",),
)
UNPRICED = GaugeSpec("orchestrator_instances_unpriced", "Those of these instances whose price is not known")
OVERDUE = GaugeSpec(
    "orchestrator_instances_overdue",
    "Instances that live on 10 min after they should have powered themselves off",
    ("pipeline",),
)
BUDGET_LIMIT = GaugeSpec("orchestrator_budget_limit_usd", "MAX_USD_PER_DAY and MAX_USD_PER_MONTH", ("period",))
BUDGET_USED = GaugeSpec(
    "orchestrator_budget_used_usd", "What counts against them: spent, and the worst case of what is live", ("period",)
)

GAUGES = (
    READY, SOURCE_UP, RUNS, OLDEST_QUEUED, LEASES_EXPIRING, HEARTBEAT_AGE, SENSOR_ON, TICK_AGE, SENSOR_LAG,
    CHAMPION_WAITS, INSTANCES, USD_PER_HOUR, UNPRICED, OVERDUE, BUDGET_LIMIT, BUDGET_USED,
)  # fmt: skip


class Accumulated:
    """What is counted since this process began, as Prometheus expects it of counters and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs_ended = Counter(
            "orchestrator_runs_ended_total", "Runs that have ended", ("pipeline", "status"), registry=self.registry
        )
        self.retries = Counter(
            "orchestrator_run_retries_total",
            "Failed runs that Dagster tries again",
            ("pipeline",),
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "orchestrator_stage_seconds",
            "How long each stage of a training took",
            ("pipeline", "stage", "outcome"),
            buckets=STAGE_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "orchestrator_errors_total",
            "Steps and sensor ticks that have failed, by the system that the error came from",
            ("system",),
            registry=self.registry,
        )
        self.janitor_actions = Counter(
            "orchestrator_janitor_actions_total",
            "What the janitor has decided to do, and what became of it",
            ("action", "result"),
            registry=self.registry,
        )


def offered_names() -> frozenset[str]:
    """The names that an expression may use."""
    names = {spec.name for spec in GAUGES}
    for family in Accumulated().registry.collect():
        endings = ("_bucket", "_sum", "_count") if family.type == "histogram" else ("_total",)
        names |= {f"{family.name}{ending}" for ending in endings}
    return frozenset(names)
