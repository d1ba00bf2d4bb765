"""MAX_USD_PER_RUN, _DAY and _MONTH: nothing is launched that could cost more than they leave."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import dagster as dg
import pytest

from orchestrator.errors import BudgetExceeded, TrainingFailed
from orchestrator.pipeline.training.budget import Budget, Grant
from orchestrator.resources.ec2 import Ec2, Instance
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow import Mlflow, Run
from orchestrator.settings.groups import MachineSettings
from orchestrator_tests.support.asset_runs import NODE, train
from orchestrator_tests.support.attempts import ThisRun, World

NOW = datetime.now(UTC)
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
DEPLOYMENT = "ours"


@dataclass
class Cloud:
    """EC2 and MLflow, as far as the budget asks."""

    prices: Mapping[str, float | None] = field(default_factory=lambda: {"t3.medium": 1.0, "p4d.24xlarge": 30.0})
    live: list[Instance] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def price(self, instance_type: str, *, market: str, zone: str | None = None) -> float | None:
        price = self.prices.get(instance_type)
        return price / 2 if price and market == "spot" else price

    def hourly_usd(self, instance: Instance) -> float | None:
        return self.price(instance.type, market=instance.market)

    def find_all(self) -> list[Instance]:
        return self.live

    def runs_since(self, moment: datetime, *, tags: Mapping[str, str]) -> list[Run]:
        return [run for run in self.runs if run.has(tags) and (run.start_time or NOW) >= moment]

    def budget(self, **settings: Any) -> Budget:
        needed = {"ami": "ami-1", "key_pair": "k", "security_group": "sg-1", "deployment": DEPLOYMENT}
        machine = MachineSettings.model_validate({**needed, **settings})
        return Budget(machine, ec2=cast(Ec2, self), mlflow=cast(Mlflow, self))


def a_run(
    id: str,
    *,
    started: datetime = NOW,
    status: str = "FINISHED",
    hours: float = 0,
    tags: Mapping[str, str] | None = None,
    **named: str,
) -> Run:
    names = {"cost": "orchestrator.cost_usd", "reserved": "orchestrator.reserved_usd", "instance": "ec2.instance_id"}
    ours = {names[key]: value for key, value in named.items()}
    return Run(
        id=id,
        name=id,
        experiment_id="1",
        status=cast(Any, status),
        start_time=started,
        end_time=None if status == "RUNNING" else started + timedelta(hours=hours),
        params={},
        latest={},
        tags={"orchestrator.deployment": DEPLOYMENT, "ec2.instance_type": "t3.medium", **ours, **(tags or {})},
        active=True,
    )


def an_instance(id: str, *, hours_left: float, mlflow_run: str = "", type: str = "t3.medium") -> Instance:
    deadline = (NOW + timedelta(hours=hours_left)).isoformat()
    return Instance(
        id=id,
        state="running",
        type=type,
        market="on-demand",
        zone=None,
        address=None,
        launched_at=NOW,
        tags={"orchestrator:expires-at": deadline, "orchestrator:mlflow-run": mlflow_run},
    )


def test_without_a_ceiling_nothing_is_asked() -> None:
    budget = Budget(
        MachineSettings.model_validate({"ami": "a", "key_pair": "k", "security_group": "s"}),
        ec2=cast(Ec2, None),
        mlflow=cast(Mlflow, None),
    )
    assert budget.grant(["p4d.24xlarge"], minutes=60) == Grant(["p4d.24xlarge"])


@pytest.mark.parametrize(("limit", "spent", "refused"), [(2, 0, False), (1.9, 0, True), (2, 0.1, True), (0, 0, True)])
def test_a_run_that_may_cost_more_than_its_ceiling_is_refused(limit: float, spent: float, refused: bool) -> None:
    budget = Cloud().budget(max_usd_per_run=limit)
    if not refused:
        assert budget.grant(["t3.medium"], minutes=120, spent=spent) == Grant(["t3.medium"], 2.0)
        return
    with pytest.raises(BudgetExceeded, match=r"t3\.medium: it may cost 2\.00 USD \(120 min at 1 USD.*MAX_USD_PER_RUN"):
        budget.grant(["t3.medium"], minutes=120, spent=spent)


def test_types_that_are_too_dear_or_without_a_price_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    budget = Cloud().budget(max_usd_per_run=5)
    assert budget.grant(["p4d.24xlarge", "t3.medium", "x1.large"], minutes=60) == Grant(["t3.medium"], 1.0)
    assert "p4d.24xlarge, x1.large" in caplog.text


@pytest.mark.parametrize("ceiling", ["max_usd_per_run", "max_usd_per_day", "max_usd_per_month"])
def test_an_unknown_price_is_refused(ceiling: str) -> None:
    with pytest.raises(BudgetExceeded, match=r"x1\.large.*INSTANCE_PRICES"):
        Cloud().budget(**{ceiling: 1000}).grant(["x1.large"], minutes=1)


def test_of_several_markets_the_dearest_counts() -> None:
    cloud = Cloud()
    assert cloud.budget(max_usd_per_run=5, market="spot").grant(["t3.medium"], minutes=60).usd == 0.5
    assert cloud.budget(max_usd_per_run=5, market="spot,on-demand").grant(["t3.medium"], minutes=60).usd == 1.0


YESTERDAY = MIDNIGHT - timedelta(seconds=1)
SPENT = [
    ([a_run("a", cost="2.5")], 2.5),
    ([a_run("a", status="FAILED", cost="2.5"), a_run("b", status="KILLED", cost="0.5")], 3.0),
    ([a_run("a", instance="i-gone", tags={"ec2.usd": "2"})], 2.0),  # of an earlier version
    ([a_run("a", cost="2.5", tags={"orchestrator.training": "b"})], 0),  # another run of the same training
    ([a_run("a", started=YESTERDAY, cost="2.5")], 0),
    ([a_run("a", started=MIDNIGHT - timedelta(hours=1), hours=4, cost="4")], 3.0),  # over midnight: what was after it
    ([a_run("a", started=MIDNIGHT - timedelta(hours=9), hours=11, cost="1.5")], 1.5),  # waited long for its instance
    ([a_run("a", started=MIDNIGHT - timedelta(hours=48.5), hours=49.5, cost="9")], 1.0),
    ([a_run("a", started=YESTERDAY, hours=1, cost="4", tags={"ec2.instance_type": "x1.large"})], 4.0),  # no price: all
    ([a_run("a", started=YESTERDAY, hours=1, instance="i-gone")], 1.0),
    ([a_run("a", status="FAILED", hours=3, instance="i-gone")], 3.0),  # nobody lived to write it down
    ([replace(a_run("a", hours=3, instance="i-gone"), active=False)], 3.0),  # deleted
    ([a_run("a", cost="nan", instance="i-gone", hours=1)], 1.0),
    ([a_run("a", cost="-7", instance="i-gone", hours=1)], 1.0),
    ([a_run("a", hours=3, instance="i-gone", tags={"ec2.instance_type": "x1.large"})], 0),  # a warning
    ([a_run("a", status="RUNNING", reserved="4")], 4.0),  # is about to launch
    ([a_run("a", status="RUNNING", reserved="4", instance="i-new")], 4.0),  # is not listed yet
    ([a_run("a", status="FAILED", reserved="4")], 0),  # was refused
    ([a_run("a", cost="9", tags={"orchestrator.deployment": "theirs"})], 0),
]


@pytest.mark.parametrize(("runs", "spent"), SPENT)
def test_what_was_spent_today_counts(runs: list[Run], spent: float) -> None:
    cloud = Cloud(runs=runs)
    granted = cloud.budget(max_usd_per_day=spent + 1.01).grant(["t3.medium"], minutes=60)
    assert granted.usd == 1.0
    with pytest.raises(BudgetExceeded, match=rf"MAX_USD_PER_DAY={spent + 0.99:g} leaves"):
        cloud.budget(max_usd_per_day=spent + 0.99).grant(["t3.medium"], minutes=60)


def test_the_worst_case_of_what_is_live_counts_and_once_only() -> None:
    cloud = Cloud(
        live=[an_instance("i-1", hours_left=3, mlflow_run="a"), an_instance("i-2", hours_left=1)],
        runs=[a_run("a", status="RUNNING", reserved="3", instance="i-1"), a_run("b", cost="2", instance="i-9")],
    )
    with pytest.raises(
        BudgetExceeded,
        match=r"PER_DAY=6\.5 leaves 0\.5: 2\.00 USD were spent on .* 4\.00 is the worst case of the 2 instances",
    ):
        cloud.budget(max_usd_per_day=6.5).grant(["t3.medium"], minutes=60)
    assert cloud.budget(max_usd_per_day=7.1).grant(["t3.medium"], minutes=60).usd == 1.0


def test_what_is_live_without_a_price_is_refused() -> None:
    cloud = Cloud(live=[an_instance("i-1", hours_left=1, type="x1.large")])
    with pytest.raises(BudgetExceeded, match=r"instance i-1 costs.*x1\.large"):
        cloud.budget(max_usd_per_month=1000).grant(["t3.medium"], minutes=60)


def test_a_month_has_its_own_ceiling() -> None:
    first = MIDNIGHT.replace(day=1)
    cloud = Cloud(runs=[a_run("a", started=first, cost="5", instance="i-9")])
    with pytest.raises(
        BudgetExceeded, match=rf"MAX_USD_PER_MONTH=5\.5 leaves 0\.5: 5\.00 USD were spent in {first:%Y-%m} "
    ):
        cloud.budget(max_usd_per_day=100, max_usd_per_month=5.5).grant(["t3.medium"], minutes=60)


def test_of_two_launches_at_once_the_older_goes_first() -> None:
    older, younger = (a_run(id, status="RUNNING", reserved="1", started=NOW) for id in ("a", "b"))
    budget = Cloud(runs=[younger, older]).budget(max_usd_per_day=1.5)
    assert budget.grant(["t3.medium"], minutes=60, mlflow_run="a").usd == 1.0
    with pytest.raises(BudgetExceeded, match=r"1\.00 that of launches that wait"):
        budget.grant(["t3.medium"], minutes=60, mlflow_run="b")
    with pytest.raises(BudgetExceeded):
        budget.grant(["t3.medium"], minutes=60)


# In a run


@pytest.mark.services
@pytest.mark.parametrize("implicit", [False, True], ids=["run of the job", "asset page"])
@pytest.mark.parametrize("ceiling", ["MAX_USD_PER_RUN", "MAX_USD_PER_DAY", "MAX_USD_PER_MONTH"])
def test_a_run_of_dagster_that_may_cost_too_much_launches_nothing(
    world: World,
    dagster: dg.DagsterInstance,
    recorded: Build,
    monkeypatch: pytest.MonkeyPatch,
    ceiling: str,
    implicit: bool,
) -> None:
    before = set(world.ec2_server.instance_ids())
    settings = {ceiling: "3", "MAX_TRAINING_MINUTES": "60"}  # 3.6 USD an hour
    result = train(world, dagster, monkeypatch, settings=settings, implicit=implicit)
    failure = result.failure_data_for_node(f"{NODE}.provision")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "it may cost 3.66 USD (61 min at 3.6 USD an hour), and " + ceiling in str(
        failure.user_failure_data.description
    )
    assert set(world.ec2_server.instance_ids()) == before


def test_the_launchpads_dearer_machine_is_measured_by_its_own_price(
    world: World, dagster: dg.DagsterInstance, recorded: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "MAX_USD_PER_RUN": "10",
        "MAX_TRAINING_MINUTES": "60",
        "INSTANCE_TYPES_ALLOWED": "p4d.24xlarge",
        "INSTANCE_PRICES": '{"p4d.24xlarge": 32.77}',
    }
    result = train(world, dagster, monkeypatch, settings=settings, config={"instance_type": "p4d.24xlarge"})
    failure = result.failure_data_for_node(f"{NODE}.provision")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "p4d.24xlarge: it may cost 33.32 USD" in str(failure.user_failure_data.description)


def test_what_a_failed_training_has_cost_counts_for_the_next_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    deployment = {"ORCHESTRATOR_DEPLOYMENT": "of the budget", "INSTANCE_HOURLY_USD": "3600"}
    failing = {**world.script("fails", "#!/bin/sh\nexit 1\n"), **deployment, "MAX_TRAINING_MINUTES": "1"}
    attempt = world.attempt(951, run=ThisRun("run-951"), settings={**failing, "MAX_USD_PER_DAY": "120"})
    with pytest.raises(TrainingFailed):
        attempt.train()
    attempt.close()
    experiment = world.environment["MLFLOW_EXPERIMENT_ID"]
    [run] = world.mlflow.find_runs(experiment, tags={"dagster_run_id": "run-951"})
    assert run.status == "FAILED"
    cost = float(run.tags["orchestrator.cost_usd"])
    assert cost > 0
    assert float(run.tags["orchestrator.reserved_usd"]) == 120
    with pytest.raises(BudgetExceeded, match=r"USD were spent on .* of the 0 instances that are live"):
        world.attempt(952, run=ThisRun("run-952"), settings={**failing, "MAX_USD_PER_DAY": "120"}).provision()
    later = world.attempt(953, run=ThisRun("run-953"), settings={**failing, "MAX_USD_PER_DAY": f"{cost + 120.01}"})
    assert later.provision() is not None
    third = world.attempt(954, run=ThisRun("run-954"), settings={**failing, "MAX_USD_PER_DAY": f"{cost + 120.01}"})
    with pytest.raises(BudgetExceeded, match="of the 1 instances that are live"):
        third.provision()
    later.close()
