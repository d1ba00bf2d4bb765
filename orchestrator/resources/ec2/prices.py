"""What an hour of an instance costs: from AWS's price list, or from the spot market.

A price is nice to have. It is asked for once, within seconds, and its absence is logged, not raised.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from botocore.config import Config

from orchestrator.resources.ec2.errors import AWS_ERRORS
from orchestrator.resources.retry import EC2_PRICES

if TYPE_CHECKING:
    import boto3

_log = logging.getLogger(__name__)

_ONE_QUICK_TRY = Config(
    connect_timeout=EC2_PRICES.connect_seconds,
    read_timeout=EC2_PRICES.answer_seconds,
    retries={"mode": "standard", "total_max_attempts": 1},
)

# The Price List API lives in a few regions only and knows the prices of all:
# https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-price-list-query-api.html
_PRICE_LIST_REGION = "us-east-1"

# (region, type) -> USD; on-demand prices hardly ever change, so one answer serves the process's life.
_on_demand: dict[tuple[str, str], float] = {}


def hourly_usd(
    session: boto3.session.Session, instance_type: str, *, market: str, zone: str | None, region: str
) -> float | None:
    """Price of one hour of such an instance, without its volume, in USD.

    Args:
        session: carries the credentials.
        instance_type: such as `t3.medium`.
        market: on-demand or spot.
        zone: counts for spot; None: the dearest one.
        region: the region that it runs in.

    Returns:
        The price; None, with the reason in the log, when AWS does not tell it.
    """
    try:
        if market == "spot":
            return _spot(session, instance_type, zone=zone, region=region)
        key = (region, instance_type)
        if key not in _on_demand:
            _on_demand[key] = _listed(session, instance_type, region=region)
        return _on_demand[key]
    except (*AWS_ERRORS, LookupError, TypeError, ValueError) as error:
        _log.info(
            f"No price, so no cost, of {instance_type} ({market}) in {region}: set INSTANCE_PRICES (or "
            "INSTANCE_HOURLY_USD, if it is the first of INSTANCE_TYPE), or allow pricing:GetProducts and "
            f"ec2:DescribeSpotPriceHistory ({type(error).__name__}: {error})"
        )
        return None


def _spot(session: boto3.session.Session, instance_type: str, *, zone: str | None, region: str) -> float:
    """The price now: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html."""
    answer = session.client("ec2", region_name=region, config=_ONE_QUICK_TRY).describe_spot_price_history(
        InstanceTypes=[cast(Any, instance_type)],
        ProductDescriptions=["Linux/UNIX", "Linux/UNIX (Amazon VPC)"],
        StartTime=datetime.now(UTC),
    )
    if zone is None:
        return max(float(entry["SpotPrice"]) for entry in answer["SpotPriceHistory"])
    here = [entry for entry in answer["SpotPriceHistory"] if entry["AvailabilityZone"] == zone]
    return float(max(here, key=lambda entry: entry["Timestamp"])["SpotPrice"])


def _listed(session: boto3.session.Session, instance_type: str, *, region: str) -> float:
    """The list price: https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html."""
    wanted = {
        "regionCode": region,
        "instanceType": instance_type,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    pricing = session.client("pricing", region_name=_PRICE_LIST_REGION, config=_ONE_QUICK_TRY)
    answer = pricing.get_products(
        ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in wanted.items()],
    )
    prices = [
        float(dimension["pricePerUnit"]["USD"])
        for product in answer["PriceList"]
        for term in json.loads(product)["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension["unit"] == "Hrs"
    ]
    return min(price for price in prices if price > 0)
