"""Reading what EC2 says of an instance: tags are anybody's, and odd ones cost nothing but themselves."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.janitor.rules import decide
from orchestrator.janitor.snapshot import Snapshot
from orchestrator.names import Ec2Tag
from orchestrator.resources import retry
from orchestrator.resources.ec2.api import Ec2Api
from orchestrator.resources.ec2.instance import Instance
from orchestrator.settings.groups import MachineSettings

NOW = datetime(2026, 11, 27, tzinfo=UTC)
MACHINE = MachineSettings(ami="ami-1", key_pair="k", security_group="sg-1", deployment="here")


def raw(**fields: object) -> Any:
    return {
        "InstanceId": "i-1",
        "State": {"Name": "running"},
        "InstanceType": "t3.medium",
        "LaunchTime": NOW,
        **fields,
    }


def instance(**tags: str) -> Instance:
    return Instance.from_api(raw(Tags=[{"Key": key, "Value": value} for key, value in tags.items()]), address="auto")


moments = st.text(max_size=30) | st.sampled_from(
    [
        "",
        "soon",
        "2026-11-27",
        "2026-11-27T00:00:00",
        "2026-11-27T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:59+00:00",
        "9e18",
    ]
)


@given(expires=moments, lease=moments, pipeline=st.text(max_size=5), partition=st.text(max_size=5))
def test_any_tag_is_a_time_or_none_and_the_janitor_goes_on(
    expires: str, lease: str, pipeline: str, partition: str
) -> None:
    tags = {
        Ec2Tag.DEPLOYMENT: "here",
        Ec2Tag.PIPELINE: pipeline,
        Ec2Tag.PARTITION: partition,
        Ec2Tag.EXPIRES_AT: expires,
        Ec2Tag.LEASE_UNTIL: lease,
    }
    odd = instance(**tags)
    for moment in (odd.power_off_at, odd.lease_until):
        assert moment is None or moment.tzinfo is UTC
    for broken in (frozenset[str](), frozenset({"x"})):
        seen = Snapshot(deployments=frozenset({"here"}), broken=broken, watching_since=NOW, instances=(odd,))
        decide(seen, NOW)


@pytest.mark.parametrize("tags", [None, [], [{"Key": "a"}], [{"Value": "b"}], [{"Key": "a", "Value": None}]])
def test_tags_that_miss_something_are_empty(tags: object) -> None:
    read = Instance.from_api(raw(Tags=tags), address="auto")
    assert set(read.tags.values()) <= {""}


class Pages:
    """In place of boto3's client: one page of instances."""

    def __init__(self, *instances: object) -> None:
        self._page = {"Reservations": [{"Instances": list(instances)}]}

    def get_paginator(self, _: str) -> Pages:
        return self

    def paginate(self, **_: object) -> list[object]:
        return [self._page]


def test_an_instance_that_cannot_be_read_costs_that_instance(caplog: pytest.LogCaptureFixture) -> None:
    api = Ec2Api(MACHINE, policy=retry.JANITOR_EC2)
    odd = [raw(InstanceId="i-2", State=None), raw(InstanceId="i-3", LaunchTime="today"), {"InstanceId": "i-4"}]
    api.__dict__["client"] = Pages(*odd, raw())
    with caplog.at_level(logging.WARNING):
        assert [found.id for found in api.list_once({}, states=["running"])] == ["i-1"]
    assert [record.getMessage().split(": ")[1].split()[0] for record in caplog.records] == ["i-2", "i-3", "i-4"]
