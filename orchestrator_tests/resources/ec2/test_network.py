"""Subnets without public addresses are refused where we evidently need one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from botocore.awsrequest import AWSResponse

from orchestrator.errors import SettingsError
from orchestrator.resources.ec2 import Ec2, client, network
from orchestrator_tests.support.ec2_account import Account, aws_error, events, http_answer, inject, open_account

FAR = "10.77.0.0/24"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with open_account(monkeypatch) as account:
        yield account


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine that is neither in AWS nor in a VPN: all packets leave it by the same address."""
    monkeypatch.setattr(network, "_source_address", lambda destination: "192.168.7.8")
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def imds() -> Iterator[str]:
    """AWS's metadata service."""

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NAMELESS = "<item><mapPublicIpOnLaunch>false</mapPublicIpOnLaunch></item>"


def subnets_answer(inside: str) -> AWSResponse:
    return http_answer(f"<DescribeSubnetsResponse>{inside}<requestId>1</requestId></DescribeSubnetsResponse>")


def without_public_addresses(ec2: Ec2, *subnets: str) -> None:
    def change(parsed: dict[str, list[dict[str, object]]], **_: object) -> None:
        for subnet in parsed["Subnets"]:
            subnet["MapPublicIpOnLaunch"] = subnet["SubnetId"] not in subnets

    events(ec2).register("after-call.ec2.DescribeSubnets", change)


@pytest.mark.parametrize(
    ("address", "reachable", "words"),
    [
        ("public", True, "INSTANCE_ADDRESS=public: name a subnet"),
        ("auto", False, "no way of its own to their network"),
        ("auto", True, ""),
        ("private", False, ""),
    ],
)
def test_a_subnet_without_public_addresses_is_refused_where_one_is_needed(
    account: Account, monkeypatch: pytest.MonkeyPatch, address: str, reachable: bool, words: str
) -> None:
    monkeypatch.setattr(client, "may_reach", lambda cidr: reachable)
    first, second = account.subnets[:2]
    ec2 = account.ec2(subnets=(first, second), address=address)
    without_public_addresses(ec2, second)
    if not words:
        ec2.require_usable_subnets()
        return
    with pytest.raises(SettingsError, match=words) as caught:
        ec2.require_usable_subnets()
    assert f"SUBNET_ID={second} get" in str(caught.value)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda ec2: inject(ec2, "DescribeSubnets", aws_error("UnauthorizedOperation", status=403)),
        lambda ec2: inject(ec2, "DescribeSubnets", aws_error("InvalidAction")),
        lambda ec2: inject(ec2, "DescribeSubnets", lambda: subnets_answer("")),
        lambda ec2: inject(ec2, "DescribeSubnets", lambda: subnets_answer("<subnetSet/>")),
        lambda ec2: inject(ec2, "DescribeSubnets", lambda: subnets_answer(f"<subnetSet>{NAMELESS}</subnetSet>")),
        without_public_addresses,
    ],
    ids=["denied", "unknown", "no list", "none", "no name", "public"],
)
@pytest.mark.parametrize("address", ["public", "auto"])
def test_what_aws_does_not_tell_is_no_reason_to_refuse(
    account: Account, prepare: Callable[[Ec2], object], address: str
) -> None:
    ec2 = account.ec2(address=address)
    prepare(ec2)
    ec2.require_usable_subnets()


def test_of_a_subnet_without_ipv4_nobody_knows_whether_it_is_reached(account: Account) -> None:
    ec2 = account.ec2(address="auto")
    without_public_addresses(ec2, account.subnets[0])

    def change(parsed: dict[str, list[dict[str, object]]], **_: object) -> None:
        for subnet in parsed["Subnets"]:
            del subnet["CidrBlock"]

    events(ec2).register("after-call.ec2.DescribeSubnets", change)
    ec2.require_usable_subnets()


def test_without_a_subnet_the_default_one_is_taken_to_be_usable(account: Account) -> None:
    account.ec2(address="public", subnets=()).require_usable_subnets()
    assert account.asked("DescribeSubnets") == []


def test_another_ec2_than_aws_may_have_its_instances_anywhere(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "may_reach", lambda cidr: False)
    ec2 = account.ec2()
    without_public_addresses(ec2, account.subnets[0])
    monkeypatch.setattr(Ec2, "address", "http://127.0.0.1:5000")
    ec2.require_usable_subnets()


def test_a_machine_outside_of_aws_without_a_route_of_its_own_reaches_no_private_address(
    nowhere: dict[str, str],
) -> None:
    assert not network.may_reach(FAR, nowhere)
    assert network.may_reach("192.168.7.0/24", nowhere), "it is in that range"
    assert network.may_reach(FAR, {**nowhere, "ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4"})


def test_an_instance_of_aws_may_reach_it(nowhere: dict[str, str], imds: str) -> None:
    assert network.may_reach(FAR, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds})


def test_a_vpn_may_lead_there(nowhere: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_source_address", lambda to: "10.8.0.2" if to.startswith("10.") else "192.168.7.8")
    assert network.may_reach(FAR, nowhere)


def test_without_any_route_nothing_is_reached(nowhere: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_source_address", lambda _: None)
    assert not network.may_reach(FAR, nowhere)


def test_the_way_of_packets_is_found_without_sending_any() -> None:
    assert network._source_address("127.0.0.1") == "127.0.0.1"
