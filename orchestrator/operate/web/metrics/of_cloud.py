"""The metrics that are read of EC2 and MLflow: instances, what they cost, and what is left of the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client.core import GaugeMetricFamily

from orchestrator.janitor.clients import machine_of_environment
from orchestrator.operate.web.metrics import families
from orchestrator.pipeline.training.budget import Budget
from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import hand_aws_to_boto3

OVERDUE_AFTER = timedelta(minutes=10)
"""The janitor ends an instance that has not powered itself off long before."""

DAY_MINUTES = 24 * 60
PRICE_GOOD = timedelta(hours=1)
PERIODS = {"MAX_USD_PER_DAY": "day", "MAX_USD_PER_MONTH": "month"}


class Ec2Metrics:
    """Looks at the instances of the deployment that the environment names, through the same client as the janitor.

    Args:
        now: in UTC.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._prices: dict[tuple[str, ...], tuple[datetime, float | None]] = {}

    def look(self) -> Sequence[GaugeMetricFamily]:
        """The gauges as they are now.

        Raises:
            Ec2Error: AWS did not answer.
            SettingsError: a setting is wrong.
        """
        hand_aws_to_boto3()
        ec2 = Ec2(machine_of_environment(), policy=retry.JANITOR_EC2)
        counts: Counter[tuple[str, ...]] = Counter()
        overdue: Counter[tuple[str, ...]] = Counter()
        usd: dict[tuple[str, ...], float] = {}
        unpriced = 0
        for instance in ec2.find_all():
            pipeline = (instance.pipeline or families.OTHER,)
            counts[*pipeline, instance.type, instance.market, instance.state] += 1
            end = instance.power_off_at
            overdue[pipeline] += end is not None and instance.alive and self._now() > end + OVERDUE_AFTER
            price = self._price(ec2, instance) if instance.alive else 0
            unpriced += price is None
            usd[pipeline] = usd.get(pipeline, 0) + (price or 0)
        return [
            families.INSTANCES.family(counts),
            families.USD_PER_HOUR.family(usd),
            families.UNPRICED.family(unpriced),
            families.OVERDUE.family(overdue),
        ]

    def _price(self, ec2: Ec2, instance: Instance) -> float | None:
        """Asked for once an hour, also where AWS does not tell it."""
        key = (instance.type, instance.market, instance.zone or "")
        known = self._prices.get(key)
        if known is None or self._now() - known[0] > PRICE_GOOD:
            known = self._prices[key] = (self._now(), ec2.hourly_usd(instance))
        return known[1]


def look_at_budget() -> Sequence[GaugeMetricFamily]:
    """The ceilings of the environment, and what counts against them; nothing where there is none.

    Raises:
        Ec2Error: AWS did not answer.
        MlflowError: MLflow did not.
        BudgetExceeded: what a live instance costs is not known.
        SettingsError: a setting is wrong.
    """
    machine = machine_of_environment()
    if machine.max_usd_per_day is machine.max_usd_per_month is None:
        return ()
    hand_aws_to_boto3()
    ec2 = Ec2(machine, policy=retry.JANITOR_EC2)
    with Mlflow(SettingsSource().read(MlflowSettings), policy=retry.JANITOR_MLFLOW) as mlflow:
        uses = Budget(machine, ec2=ec2, mlflow=mlflow).uses(minutes=DAY_MINUTES)
    return [
        families.BUDGET_LIMIT.family({(PERIODS[use.setting],): use.limit for use in uses}),
        families.BUDGET_USED.family({(PERIODS[use.setting],): use.used for use in uses}),
    ]
