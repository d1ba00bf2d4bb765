from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from orchestrator.resources.ec2 import prices
from orchestrator.resources.ec2.instance import Instance
from orchestrator_tests.support.ec2_account import REGION, Account, open_account

ON_DEMAND = Instance(
    id="i-1",
    state="running",
    type="t3.medium",
    market="on-demand",
    zone=REGION + "a",
    address=None,
    launched_at=datetime.now(UTC),
)
SPOT = replace(ON_DEMAND, market="spot")


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.setattr(prices, "_on_demand", {})
    with open_account(monkeypatch) as account:
        yield account


def price_list(*usd: str) -> dict[str, Any]:
    """An answer of GetProducts: one product for each price."""
    return {
        "PriceList": [
            json.dumps(
                {
                    "product": {"sku": "S"},
                    "terms": {
                        "OnDemand": {
                            "S.T": {"priceDimensions": {"S.T.D": {"unit": "Hrs", "pricePerUnit": {"USD": price}}}}
                        }
                    },
                }
            )
            for price in usd
        ]
    }


def session_with(answer: dict[str, Any], asked: list[dict[str, Any]]) -> boto3.session.Session:
    """A session whose price list is this one (moto has none)."""
    session = boto3.session.Session()

    def reply(params: dict[str, Any], **_: object) -> tuple[Any, dict[str, Any]]:
        asked.append(json.loads(params["body"]))
        return type("Ok", (), {"status_code": 200})(), answer

    hooks: Any = session.events  # the stubs know of no hook that answers
    hooks.register("before-call.pricing.GetProducts", reply)
    return session


def price_of(session: boto3.session.Session, instance: Instance) -> float | None:
    return prices.hourly_usd(session, instance.type, market=instance.market, zone=instance.zone, region=REGION)


def test_the_price_is_the_one_of_a_plain_linux_instance_and_asked_for_once(account: Account) -> None:
    asked: list[dict[str, Any]] = []
    session = session_with(price_list("0.0000000000", "0.0416000000"), asked)
    assert price_of(session, ON_DEMAND) == 0.0416
    assert price_of(session, ON_DEMAND) == 0.0416
    (request,) = asked
    assert {one["Field"]: one["Value"] for one in request["Filters"]} == {
        "regionCode": REGION,
        "instanceType": "t3.medium",
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }


@pytest.mark.parametrize("answer", [price_list(), price_list("free"), {"PriceList": ["{}"]}, {}])
def test_a_price_that_cannot_be_had_is_none_and_logged(
    account: Account, caplog: pytest.LogCaptureFixture, answer: dict[str, Any]
) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator")  # the level and the logger of dagster.yaml
    assert price_of(session_with(answer, []), ON_DEMAND) is None
    (record,) = caplog.records
    assert record.name == "orchestrator.resources.ec2.prices"
    assert record.getMessage().startswith(f"No price, so no cost, of t3.medium (on-demand) in {REGION}: ")
    assert "set INSTANCE_PRICES" in record.getMessage()


def test_an_endpoint_without_prices_costs_no_more_than_the_figure(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:1")
    assert price_of(boto3.session.Session(), replace(ON_DEMAND, type="x")) is None


def test_a_spot_instance_costs_what_its_zone_costs_now(account: Account) -> None:
    assert price_of(boto3.session.Session(), SPOT) == 0.00001
    assert price_of(boto3.session.Session(), replace(SPOT, zone="nowhere")) is None


def test_a_price_in_the_settings_is_believed(account: Account) -> None:
    assert account.ec2(hourly_usd=0.0).hourly_usd(ON_DEMAND) == 0.0
    assert account.ec2(prices={"t3.medium": 0.05}, hourly_usd=0.04).hourly_usd(ON_DEMAND) == 0.05
    assert account.ec2(prices='{"p4d.24xlarge": "32.77"}').price("p4d.24xlarge", market="spot") == 32.77


@pytest.mark.parametrize("types", [("t3.medium",), ("t3.medium", "p4d.24xlarge")])
def test_a_price_in_the_settings_is_not_that_of_another_type(
    account: Account, monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:1")
    ec2 = account.ec2(instance_types=types, hourly_usd=0.04)
    assert ec2.hourly_usd(ON_DEMAND) == 0.04
    assert ec2.hourly_usd(replace(ON_DEMAND, type="p4d.24xlarge")) is None
    assert ec2.hourly_usd(replace(SPOT, type="m5.large")) == 0.00001, "AWS is asked"


def test_without_one_aws_is_asked(account: Account) -> None:
    assert account.ec2().hourly_usd(SPOT) == 0.00001
    assert account.ec2().price("t3.medium", market="spot") == 0.00001
