"""The sandbox's EC2 API: what it says of an instance is what the instance's machine is."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import paramiko
import psutil
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from orchestrator.errors import SandboxError
from orchestrator.resources.ec2.user_data import HostKey, cloud_config
from orchestrator_sandbox.ec2.api import AwsFault
from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_tests.support.waiting import until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

POWER_OFF_AT_ONCE = "#!/bin/sh\npoweroff\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2Server]:
    with Ec2Server(tmp_path_factory.mktemp("ec2"), status_check_seconds=0.5) as running:
        yield running


@pytest.fixture
def ec2(server: Ec2Server) -> Iterator[EC2Client]:
    client = connect(server)
    yield client
    everything = [instance["InstanceId"] for instance in instances(client)]
    if everything:
        client.terminate_instances(InstanceIds=everything)


def connect(server: Ec2Server) -> EC2Client:
    env = server.env()
    return boto3.client(
        "ec2",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}),
    )


def instances(ec2: EC2Client) -> list[InstanceTypeDef]:
    pages = ec2.get_paginator("describe_instances").paginate()
    return [one for page in pages for group in page["Reservations"] for one in group["Instances"]]


def launch(ec2: EC2Client, server: Ec2Server, **more: Any) -> str:
    env = server.env()
    request: dict[str, Any] = {
        "ImageId": env["AMI_ID"],
        "InstanceType": env["INSTANCE_TYPE"],
        "KeyName": env["KEY_PAIR_NAME"],
        "SecurityGroupIds": [env["SECURITY_GROUP_ID"]],
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceInitiatedShutdownBehavior": "terminate",
        **more,
    }
    (instance,) = ec2.run_instances(**request)["Instances"]
    assert instance["State"]["Name"] == "pending"
    assert not instance.get("PublicIpAddress")
    return instance["InstanceId"]


def describe(ec2: EC2Client, instance_id: str) -> InstanceTypeDef:
    (group,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    (instance,) = group["Instances"]
    return instance


def wait_for(ec2: EC2Client, instance_id: str, state: str) -> InstanceTypeDef:
    until(lambda: describe(ec2, instance_id)["State"]["Name"] == state, seconds=20)
    return describe(ec2, instance_id)


def login(server: Ec2Server, address: str) -> paramiko.SSHClient:
    env = server.env()
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.MissingHostKeyPolicy())
    client.connect(
        address,
        int(env["SSH_PORT"]),
        env["SSH_USER"],
        key_filename=env["KEY_PATH"],
        allow_agent=False,
        look_for_keys=False,
    )
    return client


def error_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_an_instance_lives_from_launch_to_termination(server: Ec2Server, ec2: EC2Client) -> None:
    key = HostKey.generate()
    user_data = cloud_config(host_key=key, deadline=datetime.now(UTC) + timedelta(hours=1))
    instance_id = launch(ec2, server, UserData=user_data)
    running = wait_for(ec2, instance_id, "running")
    address = running["PublicIpAddress"]
    assert address.startswith("127.77.")
    assert address == running["PrivateIpAddress"] == running["PublicDnsName"]
    with login(server, address) as ssh:
        transport = ssh.get_transport()
        assert transport is not None
        assert transport.get_remote_server_key().get_base64() == key.public.split()[1]
        _, stdout, _ = ssh.exec_command("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; exit 5")
        daemon = int(stdout.read())
        assert stdout.channel.recv_exit_status() == 5
    until(lambda: psutil.Process(daemon).name() == "sleep")
    (change,) = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("running", "shutting-down")
    terminated = wait_for(ec2, instance_id, "terminated")
    assert terminated["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert not psutil.pid_exists(daemon)
    (change,) = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["PreviousState"]["Name"] == "terminated"


def test_status_checks_pass_a_while_after_the_start(server: Ec2Server, ec2: EC2Client) -> None:
    instance_id = launch(ec2, server)

    def checks() -> set[str]:
        answer = ec2.describe_instance_status(InstanceIds=[instance_id])["InstanceStatuses"]
        return {status[kind]["Status"] for status in answer for kind in ("InstanceStatus", "SystemStatus")}

    assert checks() == set()
    seen = itertools.chain.from_iterable(iter(checks, {"ok"}))
    assert set(seen) <= {"initializing"}
    assert checks() == {"ok"}


def test_two_instances_have_two_addresses(server: Ec2Server, ec2: EC2Client) -> None:
    both = [launch(ec2, server), launch(ec2, server)]
    addresses = {wait_for(ec2, instance_id, "running")["PublicIpAddress"] for instance_id in both}
    assert len(addresses) == 2
    for address in addresses:
        login(server, address).close()


@pytest.mark.parametrize(("behaviour", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_a_machine_that_powers_itself_off_ends_as_the_instance_was_told(
    server: Ec2Server, ec2: EC2Client, behaviour: str, state: str
) -> None:
    instance_id = launch(ec2, server, UserData=POWER_OFF_AT_ONCE, InstanceInitiatedShutdownBehavior=behaviour)
    reason = wait_for(ec2, instance_id, state)["StateReason"]["Code"]
    assert reason == "Client.InstanceInitiatedShutdown"


def test_an_instance_whose_deadline_has_passed_terminates_by_itself(server: Ec2Server, ec2: EC2Client) -> None:
    user_data = cloud_config(host_key=HostKey.generate(), deadline=datetime.now(UTC) - timedelta(minutes=1))
    instance_id = launch(ec2, server, UserData=user_data)
    reason = wait_for(ec2, instance_id, "terminated")["StateReason"]["Code"]
    assert reason == "Client.InstanceInitiatedShutdown"


def test_an_instance_that_cannot_boot_terminates(server: Ec2Server, ec2: EC2Client) -> None:
    user_data = "#cloud-config\nssh_keys: {ed25519_private: nonsense}\n"
    instance_id = launch(ec2, server, UserData=user_data)
    assert wait_for(ec2, instance_id, "terminated")["StateReason"]["Code"] == "Server.InternalError"


def test_a_stopped_instance_keeps_its_files_and_starts_again(server: Ec2Server, ec2: EC2Client) -> None:
    instance_id = launch(ec2, server)
    with login(server, wait_for(ec2, instance_id, "running")["PublicIpAddress"]) as ssh:
        ssh.exec_command("echo kept > file")[1].channel.recv_exit_status()
    ec2.stop_instances(InstanceIds=[instance_id])
    assert error_of(ec2.reboot_instances, InstanceIds=[instance_id]) == "IncorrectInstanceState"
    assert "PublicIpAddress" not in wait_for(ec2, instance_id, "stopped")
    ec2.start_instances(InstanceIds=[instance_id])
    with login(server, wait_for(ec2, instance_id, "running")["PublicIpAddress"]) as ssh:
        assert ssh.exec_command("cat file")[1].read() == b"kept\n"
        ec2.reboot_instances(InstanceIds=[instance_id])
        transport = ssh.get_transport()
        assert transport is not None
        until(lambda: not transport.is_active())
    ec2.stop_instances(InstanceIds=[instance_id])
    wait_for(ec2, instance_id, "stopped")
    ec2.terminate_instances(InstanceIds=[instance_id])
    assert describe(ec2, instance_id)["State"]["Name"] == "terminated"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"KeyName": "nobody's"}, "InvalidKeyPair.NotFound"),
        ({"InstanceType": "t3.gigantic"}, "InvalidParameterValue"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
    ],
)
def test_what_does_not_exist_is_refused_as_aws_does(
    server: Ec2Server, ec2: EC2Client, wrong: dict[str, Any], code: str
) -> None:
    with pytest.raises(ClientError, match=code):
        launch(ec2, server, **wrong)


def test_the_api_answers_with_the_errors_it_is_told_to(server: Ec2Server, ec2: EC2Client) -> None:
    server.faults.answer("DescribeInstances", AwsFault("RequestLimitExceeded", status=503), times=2)
    server.faults.answer("*", AwsFault("InternalError", status=500))
    assert error_of(ec2.describe_instances) == "RequestLimitExceeded"
    assert error_of(ec2.describe_images) == "InternalError"
    assert error_of(ec2.describe_instances) == "RequestLimitExceeded"
    ec2.describe_instances()
    server.faults.answer("DescribeInstances", AwsFault("RequestLimitExceeded"))
    server.faults.clear()
    ec2.describe_instances()


def test_an_instance_can_be_taken_away_and_disturbed_from_outside(server: Ec2Server, ec2: EC2Client) -> None:
    instance_id = launch(ec2, server)
    with login(server, wait_for(ec2, instance_id, "running")["PublicIpAddress"]) as ssh:
        transport = ssh.get_transport()
        assert transport is not None
        server.swallow_traffic(instance_id, seconds=600)
        server.refuse_connections(instance_id, seconds=0)
        server.cut_connections(instance_id)
        until(lambda: not transport.is_active())
    server.terminate_from_outside(instance_id)
    reason = wait_for(ec2, instance_id, "terminated")["StateReason"]["Code"]
    assert reason == "Server.SpotInstanceTermination"
    with pytest.raises(SandboxError, match="is off"):
        server.cut_connections(instance_id)
    with pytest.raises(SandboxError, match="has no instance"):
        server.cut_connections("i-0123456789abcdef0")


def test_it_tells_where_everything_is(server: Ec2Server, ec2: EC2Client) -> None:
    env = server.env()
    assert stat.S_IMODE(os.stat(env["KEY_PATH"]).st_mode) == 0o600  # noqa: PTH116
    (image,) = ec2.describe_images(ImageIds=[env["AMI_ID"]])["Images"]
    assert image["State"] == "available"
    (group,) = ec2.describe_security_groups(GroupIds=[env["SECURITY_GROUP_ID"]])["SecurityGroups"]
    assert group["IpPermissions"][0]["FromPort"] == int(env["SSH_PORT"])
    assert ec2.describe_subnets()["Subnets"]


def test_closing_leaves_no_process_no_port_and_no_thread(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    me = psutil.Process()
    before = {process.pid for process in me.children(recursive=True)}
    with Ec2Server(tmp_path) as other:
        ec2 = connect(other)
        launch(ec2, other)
        wait_for(ec2, launch(ec2, other), "running")
        assert len(instances(ec2)) == 2
        assert requests.get(other.url, timeout=30).status_code == 401
    assert {process.pid for process in me.children(recursive=True)} <= before
    assert not set(threading.enumerate()) - threads
    with pytest.raises(EndpointConnectionError):
        ec2.describe_instances()
