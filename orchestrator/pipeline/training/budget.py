"""Ceilings in USD: what was spent, what is live, and which instance types still fit below them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from orchestrator.errors import BudgetExceeded
from orchestrator.names import MlflowTag
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.settings.groups import MachineSettings

_log = logging.getLogger(__name__)

_WAITS_SINCE = timedelta(days=2)
"""How long before its period a run may have begun that still waits for its instance."""


@dataclass(frozen=True)
class Grant:
    """What may be launched.

    Attributes:
        types: the instance types that fit, the most wanted first.
        usd: what the dearest of them may cost; None: there is no ceiling.
    """

    types: Sequence[str]
    usd: float | None = None


@dataclass(frozen=True)
class BudgetUse:
    """One ceiling, and what counts against it, in USD."""

    setting: str
    limit: float
    used: float


@dataclass(frozen=True)
class _Ceiling:
    """One setting, and what counts against it already."""

    setting: str
    limit: float
    used: float
    account: str
    cure: str

    def allows(self, usd: float) -> bool:
        return self.used + usd <= self.limit * (1 + 1e-9)


class Budget:
    """Decides, at the moment of a launch, whether MAX_USD_PER_RUN, _DAY and _MONTH leave room for it.

    Truth lies in MLflow, whose runs bear what they cost, and in EC2's tags. Two launches at the same moment see each
    other by what they have reserved in MLflow: the older one goes first.

    Args:
        machine: has the ceilings and prices.
        ec2: knows what is live.
        mlflow: knows what was spent, in all experiments that it shows us.
    """

    def __init__(self, machine: MachineSettings, *, ec2: Ec2, mlflow: Mlflow) -> None:
        self._machine = machine
        self._ec2 = ec2
        self._mlflow = mlflow

    def grant(self, types: Sequence[str], *, minutes: float, spent: float = 0, mlflow_run: str | None = None) -> Grant:
        """Find the instance types that may be launched now.

        Args:
            types: those that are wanted.
            minutes: until the instance powers itself off.
            spent: in USD, by this attempt, on instances that it lost.
            mlflow_run: that of this launch, if it is there already.

        Raises:
            BudgetExceeded: none fits, or what it costs is not known.
        """
        machine = self._machine
        if machine.max_usd_per_run is machine.max_usd_per_day is machine.max_usd_per_month is None:
            return Grant(types)
        hourly = {type_: price for type_ in types if (price := self._dearest(type_)) is not None}
        if not hourly:
            raise BudgetExceeded(
                f"Refused to launch {', '.join(types)}: a ceiling is set (MAX_USD_PER_...), and what an hour costs is "
                "not known: set INSTANCE_PRICES, or allow pricing:GetProducts and ec2:DescribeSpotPriceHistory"
            )
        worst = {type_: hourly[type_] * minutes / 60 for type_ in hourly}
        ceilings = list(self._ceilings(spent, mlflow_run, minutes=minutes))
        fitting = [type_ for type_ in worst if all(ceiling.allows(worst[type_]) for ceiling in ceilings)]
        if not fitting:
            cheapest = min(worst, key=lambda type_: worst[type_])
            ceiling = next(each for each in ceilings if not each.allows(worst[cheapest]))
            raise BudgetExceeded(
                f"Refused to launch {cheapest}: it may cost {_usd(worst[cheapest])} USD ({minutes:g} min at "
                f"{hourly[cheapest]:g} USD an hour), and {ceiling.setting}={ceiling.limit:g} leaves "
                f"{_usd(max(ceiling.limit - ceiling.used, 0))}: {ceiling.account}. Raise {ceiling.setting}, or "
                f"{ceiling.cure}"
            )
        if left_out := [type_ for type_ in types if type_ not in fitting]:
            _log.warning(f"Leaving out instance types whose price is not known, or too high now: {', '.join(left_out)}")
        return Grant(fitting, max(worst[type_] for type_ in fitting))

    def uses(self, *, minutes: float) -> Sequence[BudgetUse]:
        """What counts now against the ceilings of a day and a month, as far as they are set.

        Args:
            minutes: how long a training takes, about.

        Raises:
            BudgetExceeded: what a live instance costs is not known.
        """
        ceilings = self._ceilings(0, None, minutes=minutes)
        return [
            BudgetUse(ceiling.setting, limit=ceiling.limit, used=ceiling.used)
            for ceiling in ceilings
            if ceiling.setting != "MAX_USD_PER_RUN"
        ]

    def _dearest(self, instance_type: str) -> float | None:
        """What an hour costs in the dearest of the markets; None: one of them has no price."""
        prices = [self._ec2.price(instance_type, market=market) for market in self._machine.market]
        return None if None in prices else max(price for price in prices if price is not None)

    def _ceilings(self, spent: float, mlflow_run: str | None, *, minutes: float) -> Iterator[_Ceiling]:
        machine, now = self._machine, datetime.now(UTC)
        if machine.max_usd_per_run is not None:
            yield _Ceiling(
                "MAX_USD_PER_RUN",
                machine.max_usd_per_run,
                used=spent,
                account=f"{_usd(spent)} USD were spent on instances that this run has lost",
                cure="lower MAX_TRAINING_MINUTES",
            )
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        month = day.replace(day=1)
        periods = {
            "MAX_USD_PER_DAY": (machine.max_usd_per_day, day, day + timedelta(days=1), f"on {day:%Y-%m-%d}"),
            "MAX_USD_PER_MONTH": (
                machine.max_usd_per_month,
                month,
                (month + timedelta(days=32)).replace(day=1),
                f"in {month:%Y-%m}",
            ),
        }
        if machine.max_usd_per_day is machine.max_usd_per_month is None:
            return
        start = month if machine.max_usd_per_month is not None else day
        # First what is live: what ends between the two questions has its cost in MLflow by then, or is estimated.
        live = self._ec2.find_all()
        begun = start - _WAITS_SINCE - timedelta(minutes=minutes)  # others take about as long
        runs = self._mlflow.runs_since(begun, tags={MlflowTag.DEPLOYMENT: machine.deployment})
        for setting, (limit, since, until, when) in periods.items():
            if limit is None:
                continue
            ended = _ended(runs, live, since=since, now=now, but=mlflow_run)
            past = sum(self._cost_since(since, run, now) for run in ended)
            ahead = sum(self._worst_case(instance, since, now) for instance in live)
            waiting = sum(_number(run.tags[MlflowTag.RESERVED_USD]) or 0 for run in _waiting(runs, live, mlflow_run))
            yield _Ceiling(
                setting,
                limit,
                used=past + ahead + waiting,
                account=f"{_usd(past)} USD were spent {when} (UTC), {_usd(ahead)} is the worst case of the {len(live)} "
                f"instances that are live, and {_usd(waiting)} that of launches that wait",
                cure=f"wait until {until:%Y-%m-%d}, or for instances that end earlier than they may",
            )

    def _cost_since(self, since: datetime, run: Run, now: datetime) -> float:
        """What a run has cost in the period: no more than its instance costs from the period's begin to its end."""
        cost = self._cost(run, now)
        if run.start_time is None or run.start_time >= since:
            return cost
        hourly = self._hourly(run)
        return cost if hourly is None else min(cost, hourly * _hours(since, run.end_time or now))

    def _cost(self, run: Run, now: datetime) -> float:
        """What a run has cost; estimated by its own length where nobody lived to write it down."""
        written = _number(run.tags.get(MlflowTag.COST_USD, run.tags.get(MlflowTag.USD, "")))
        if written is not None:
            return written
        hourly = self._hourly(run)
        if hourly is None or run.start_time is None:
            machine = f"{run.tags.get(MlflowTag.INSTANCE_TYPE, '')} ({run.tags.get(MlflowTag.MARKET, '')})"
            _log.warning(f"Not counted: what MLflow run {run.id} cost on {machine} is not known")
            return 0
        return max(
            hourly * _hours(run.start_time, run.end_time or now),
            0 if run.ended else _number(run.tags.get(MlflowTag.RESERVED_USD, "")) or 0,
        )

    def _hourly(self, run: Run) -> float | None:
        instance_type = run.tags.get(MlflowTag.INSTANCE_TYPE, "")
        return self._ec2.price(instance_type, market=run.tags.get(MlflowTag.MARKET, "")) if instance_type else None

    def _worst_case(self, instance: Instance, since: datetime, now: datetime) -> float:
        """What an instance costs from the period's begin to its own deadline."""
        hourly = self._ec2.hourly_usd(instance)
        if hourly is None:
            raise BudgetExceeded(
                f"Refused to launch: what instance {instance.id} costs, which is live, is not known ({instance.type}, "
                f"{instance.market}): set INSTANCE_PRICES, or allow pricing:GetProducts and "
                "ec2:DescribeSpotPriceHistory"
            )
        end = max(instance.power_off_at or now, now) if instance.alive else now
        return hourly * _hours(max(instance.launched_at, since), end)


def _ended(
    runs: Sequence[Run], live: Collection[Instance], *, since: datetime, now: datetime, but: str | None
) -> Iterator[Run]:
    """The runs that have used an instance in this period which is gone."""
    ids = {instance.id for instance in live}
    for run in runs:
        is_own = run.id == but or MlflowTag.TRAINING in run.tags  # of a training: it bears the tags of its root
        lasted = run.start_time is None or max(run.start_time, run.end_time or now) >= since
        used = MlflowTag.INSTANCE_ID in run.tags or MlflowTag.COST_USD in run.tags
        if not is_own and lasted and used and run.tags.get(MlflowTag.INSTANCE_ID) not in ids:
            yield run


def _waiting(runs: Sequence[Run], live: Collection[Instance], mlflow_run: str | None) -> Iterator[Run]:
    """The runs before this one that are about to launch an instance, or wait for one."""
    launched = {instance.mlflow_run for instance in live}
    ours = next((_order(run) for run in runs if run.id == mlflow_run), None)
    for run in runs:
        tags: Mapping[str, str] = run.tags
        is_waiting = run.status == "RUNNING" and run.active and MlflowTag.RESERVED_USD in tags
        if not is_waiting or MlflowTag.INSTANCE_ID in tags or run.id in launched:
            continue
        if run.id != mlflow_run and (ours is None or _order(run) < ours):
            yield run


def _order(run: Run) -> tuple[datetime, str]:
    return run.start_time or datetime.min.replace(tzinfo=UTC), run.id


def _hours(begin: datetime, end: datetime) -> float:
    return max((end - begin).total_seconds(), 0) / 3600


def _number(text: str) -> float | None:
    """A cost in a tag, which whoever may log to MLflow can change; None: it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _usd(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 1 or not amount else f"{amount:.2g}"
