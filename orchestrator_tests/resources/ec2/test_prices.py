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


def test_the_price_is_the_one_of_a_plain_linux_instance_and_asked_for_once(account: Account) -> None:
    asked: list[dict[str, Any]] = []
    session = session_with(price_list("0.0000000000", "0.0416000000"), asked)
    assert prices.hourly_usd(session, ON_DEMAND, region=REGION) == 0.0416
    assert prices.hourly_usd(session, ON_DEMAND, region=REGION) == 0.0416
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
    assert prices.hourly_usd(session_with(answer, []), ON_DEMAND, region=REGION) is None
    (record,) = caplog.records
    assert record.name == "orchestrator.resources.ec2.prices"
    assert record.getMessage().startswith(f"No price, so no cost, of t3.medium (on-demand) in {REGION}: ")
    assert "set INSTANCE_HOURLY_USD" in record.getMessage()


def test_an_endpoint_without_prices_costs_no_more_than_the_figure(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:1")
    assert prices.hourly_usd(boto3.session.Session(), replace(ON_DEMAND, type="x"), region=REGION) is None


def test_a_spot_instance_costs_what_its_zone_costs_now(account: Account) -> None:
    assert prices.hourly_usd(boto3.session.Session(), SPOT, region=REGION) == 0.00001
    assert prices.hourly_usd(boto3.session.Session(), replace(SPOT, zone="nowhere"), region=REGION) is None


def test_a_price_in_the_settings_is_believed(account: Account) -> None:
    assert account.ec2(hourly_usd=0.0).hourly_usd(ON_DEMAND) == 0.0


def test_without_one_aws_is_asked(account: Account) -> None:
    assert account.ec2().hourly_usd(SPOT) == 0.00001
