from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from orchestrator.errors import Ec2Error, InstanceLost
from orchestrator.resources.ec2 import Ec2, Ec2Resource, api, tag_value
from orchestrator.settings.groups import MachineSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.ec2_account import (
    IMPATIENT,
    POWER_OFF_AT,
    QUICK,
    Account,
    aws_error,
    http_answer,
    inject,
    open_account,
    owner,
)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with open_account(monkeypatch) as account:
        yield account


# Finding


def test_a_second_attempt_finds_what_the_first_one_left(account: Account) -> None:
    first = account.ec2().launch(owner(), attempt="run-1")
    later = account.ec2()
    found = later.find(pipeline="iris", partition="7")
    assert found
    assert (found.id, found.host_key) == (first.id, first.host_key)
    later.take_over(found.id, owner(dagster_run="run-2", power_off_at=POWER_OFF_AT - timedelta(hours=1)))
    taken = later.describe(found.id)
    assert (taken.dagster_run, taken.mlflow_run) == ("run-2", "mlflow-1")
    assert taken.power_off_at == POWER_OFF_AT - timedelta(hours=1)
    assert taken.host_key == first.host_key


def test_of_several_the_newest_is_found(account: Account) -> None:
    ec2 = account.ec2()
    instances = [ec2.launch(owner(), attempt=f"run-{number}") for number in range(3)]
    newest = max(instances, key=lambda one: (one.launched_at, one.id))
    assert ec2.find(pipeline="iris", partition="7") == ec2.describe(newest.id)


def test_nobody_elses_instance_is_found_and_none_that_ended(account: Account) -> None:
    ec2 = account.ec2()
    theirs = account.ec2(deployment="theirs")
    theirs.launch(owner(), attempt="run-1")
    ec2.launch(owner(partition="70"), attempt="run-1")
    ec2.launch(owner(pipeline="iris-2"), attempt="run-1")
    ec2.terminate(ec2.launch(owner(), attempt="run-1").id)
    assert ec2.find(pipeline="iris", partition="7") is None
    assert {one.partition for one in ec2.find_all()} == {"70", "7"}
    assert {one.deployment for one in ec2.find_all()} == {"ours"}


def test_wildcards_in_names_find_nothing_else(account: Account) -> None:
    ec2 = account.ec2()
    ec2.launch(owner(partition="7"), attempt="run-1")
    assert ec2.find(pipeline="*", partition="?") is None
    starred = ec2.launch(owner(pipeline="*", partition="?"), attempt="run-1")
    assert (found := ec2.find(pipeline="*", partition="?"))
    assert found.id == starred.id


def test_instances_are_listed_a_thousand_at_a_time_and_every_page_is_read(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = account.ec2()
    instances = [ec2.launch(owner(partition=str(number)), attempt="run-1") for number in range(5)]
    sent = inject(ec2, "DescribeInstances")
    assert {one.id for one in ec2.find_all()} == {one.id for one in instances}
    assert [request["MaxResults"] for request in account.asked("DescribeInstances")] == [1000]
    monkeypatch.setattr(api, "_PAGE", 2)
    assert {one.id for one in ec2.find_all()} == {one.id for one in instances}
    assert len(sent) == 1 + 3


def test_a_stopped_instance_is_not_alive_but_still_ours_to_clean_up(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    account.aws.stop_instances(InstanceIds=[instance.id])
    assert ec2.find(pipeline="iris", partition="7") is None
    (left,) = ec2.find_all()
    assert (left.id, left.alive) == (instance.id, False)
    with pytest.raises(InstanceLost, match="is stopped"):
        ec2.require_alive(instance.id)


# Ending


def test_terminating_twice_or_an_unknown_instance_does_no_harm(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    assert ec2.terminate(instance.id) == "shutting-down"
    assert ec2.terminate(instance.id) in ("shutting-down", "terminated")
    assert ec2.terminate("i-0123456789abcdef0") is None
    ended = ec2.describe(instance.id)
    assert (ended.alive, ended.state) == (False, "terminated")
    assert "somebody terminated" in str(ended.state_reason)


def test_an_instance_that_aws_does_not_list_yet_is_terminated_all_the_same(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    inject(ec2, "TerminateInstances", *[aws_error("InvalidInstanceID.NotFound")] * 3)
    assert ec2.terminate(instance.id) == "shutting-down"
    assert account.alive() == []


def test_an_instance_that_does_not_end_is_reported(account: Account) -> None:
    ec2 = account.ec2(policy=IMPATIENT)
    still_running = (
        "<TerminateInstancesResponse><instancesSet><item><instanceId>i-0123456789abcdef0</instanceId>"
        "<currentState><code>16</code><name>running</name></currentState></item></instancesSet>"
        "</TerminateInstancesResponse>"
    )
    inject(ec2, "TerminateInstances", lambda: http_answer(still_running))
    with pytest.raises(Ec2Error, match="still running"):
        ec2.terminate("i-0123456789abcdef0")


def test_termination_protection_is_explained(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    account.aws.modify_instance_attribute(InstanceId=instance.id, DisableApiTermination={"Value": True})
    with pytest.raises(Ec2Error, match="termination protection"):
        ec2.terminate(instance.id)


def test_an_instance_that_aws_does_not_know_is_lost(account: Account) -> None:
    ec2 = account.ec2()
    with pytest.raises(InstanceLost, match="i-0123456789abcdef0"):
        ec2.require_alive("i-0123456789abcdef0")
    inject(ec2, "CreateTags", *[aws_error("InvalidInstanceID.NotFound")] * 1000)
    with pytest.raises(InstanceLost, match="i-0123456789abcdef0"):
        ec2.tag("i-0123456789abcdef0", {"a": "b"})


# Values


@given(st.text(max_size=400))
def test_any_text_fits_into_a_tag(text: str) -> None:
    value = tag_value(text)
    assert len(value) <= 256
    assert not set(value) & set("*?\\[\n\0")
    assert not value.lower().startswith("aws:")
    assert tag_value(value) == value


@given(st.lists(st.text(alphabet="a*?_\\[", max_size=6), unique=True))
def test_different_texts_become_different_tags(texts: list[str]) -> None:
    assert len({tag_value(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["12", "feature/x#12", "main", "Ünïcode ✓ branch#1", "a=b:c@d+e.f_g-h"])
def test_an_ordinary_partition_stands_in_its_tag_as_it_is(text: str) -> None:
    assert tag_value(text) == text


def test_a_broken_time_in_a_tag_is_no_time(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="run-1")
    assert instance.lease_until is None
    ec2.tag(instance.id, {"orchestrator:expires-at": "soon", "orchestrator:lease-until": "2031-01-01T00:00:00Z"})
    tagged = ec2.describe(instance.id)
    assert tagged.power_off_at is None
    assert tagged.lease_until == datetime(2031, 1, 1, tzinfo=UTC)


# Connecting


def test_the_endpoint_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with open_account(monkeypatch, endpoint=f"http://{host}:{port}") as account:
            ec2 = account.ec2()
            instance = ec2.wait_until_ready(ec2.launch(owner(), attempt="run-1"))
            assert instance.address
            assert ec2.find(pipeline="iris", partition="7") == instance
    finally:
        server.stop()


def test_the_resource_connects_with_the_pipelines_settings() -> None:
    given = {"AMI_ID": "ami-1", "KEY_PAIR_NAME": "k", "SECURITY_GROUP_ID": "sg-1", "INSTANCE_HOURLY_USD": "0.25"}
    assert isinstance(Ec2Resource().connect(SettingsSource(lookup=given.get).read(MachineSettings)), Ec2)


# Not found

UNKNOWN = aws_error("InvalidInstanceID.NotFound")


def nothing() -> AWSResponse:
    """An answer without an instance."""
    return http_answer("<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>")


@pytest.mark.parametrize("answers", [[UNKNOWN], [nothing], [UNKNOWN, nothing, UNKNOWN]])
@pytest.mark.parametrize("total_seconds", [0, 60])
def test_an_instance_that_aws_does_not_know_for_a_moment_is_still_there(
    account: Account, answers: list[Any], total_seconds: float
) -> None:
    instance = account.ec2().launch(owner(), attempt="run-1")
    ec2 = account.ec2(policy=replace(QUICK, total_seconds=total_seconds, appearance_seconds=0, absence_seconds=60))
    sent = inject(ec2, "DescribeInstances", *answers)
    assert ec2.require_alive(instance.id).id == instance.id
    assert len(sent) == len(answers) + 1


def test_an_instance_that_aws_does_not_know_for_a_moment_is_tagged_and_ended(account: Account) -> None:
    instance = account.ec2().launch(owner(), attempt="run-1")
    ec2 = account.ec2(policy=replace(QUICK, absence_seconds=60))
    inject(ec2, "CreateTags", UNKNOWN)
    inject(ec2, "TerminateInstances", UNKNOWN, UNKNOWN)
    ec2.tag(instance.id, {"a": "b"})
    assert ec2.terminate(instance.id) == "shutting-down"


def test_what_aws_does_not_know_again_and_again_is_gone(account: Account) -> None:
    ec2 = account.ec2(policy=replace(QUICK, absence_seconds=0.05))
    sent = inject(ec2, "DescribeInstances")
    assert ec2.look("i-0123456789abcdef0") is None
    assert len(sent) > 1


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "<instanceTypeSet/>",
        "<instanceTypeSet><item><instanceType>t3.large</instanceType></item></instanceTypeSet>",
        "<instanceTypeSet><item><memoryInfo/></item></instanceTypeSet>",
    ],
    ids=["no list", "none", "no memory", "no name"],
)
def test_where_an_answer_lacks_the_memory_of_types_their_order_decides(account: Account, inside: str) -> None:
    ec2 = account.ec2()
    body = f"<DescribeInstanceTypesResponse>{inside}<requestId>1</requestId></DescribeInstanceTypesResponse>"
    inject(ec2, "DescribeInstanceTypes", lambda: http_answer(body))
    assert ec2.with_more_memory("t3.medium", ["t3.small", "t3.medium", "t3.large"]) == ["t3.large"]


def test_an_answer_without_the_list_of_instances_tells_of_none(account: Account) -> None:
    body = "<DescribeInstancesResponse><requestId>1</requestId></DescribeInstancesResponse>"
    ec2 = account.ec2()
    inject(ec2, "DescribeInstances", *[lambda: http_answer(body)] * 2)
    assert ec2.of_build(pipeline="churn", partition="main#1") == []
    assert ec2.find_all() == []


def test_an_answer_without_the_list_of_images_is_no_reason_not_to_launch(account: Account) -> None:
    body = "<DescribeImagesResponse><requestId>1</requestId></DescribeImagesResponse>"
    ec2 = account.ec2()
    inject(ec2, "DescribeImages", lambda: http_answer(body))
    assert ec2.launch(owner(), attempt="first").id.startswith("i-")


def test_an_end_that_the_answer_does_not_tell_of_is_looked_up(account: Account) -> None:
    ec2 = account.ec2()
    instance = ec2.launch(owner(), attempt="first")
    body = "<TerminateInstancesResponse><return>true</return></TerminateInstancesResponse>"
    inject(ec2, "TerminateInstances", lambda: http_answer(body))
    assert ec2.terminate(instance.id) in ("shutting-down", "terminated")
