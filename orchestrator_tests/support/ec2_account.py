"""An AWS account (moto), and faults put into the calls of one client; for tests of resources/ec2 and of the janitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import boto3
import moto.settings
import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core.botocore_stubber import MockRawResponse

from orchestrator.resources import retry
from orchestrator.resources.ec2 import Ec2, Owner
from orchestrator.resources.ec2.user_data import HostKey
from orchestrator.resources.retry import Ec2Policy
from orchestrator.settings.groups import MachineSettings

REGION = "us-east-1"
# Waits short enough for a test, and limits that no test ever reaches by being slow.
QUICK = replace(
    retry.EC2,
    total_seconds=60,
    first_pause_seconds=0.01,
    longest_pause_seconds=0.05,
    appearance_seconds=60,
    absence_seconds=0.1,
)
IMPATIENT = replace(QUICK, total_seconds=0, appearance_seconds=0, absence_seconds=0)
POWER_OFF_AT = datetime(2031, 5, 17, 8, 30, tzinfo=UTC)


def aws_error(code: str, message: str = "as AWS words it", *, status: int = 400) -> ClientError:
    """What boto3 makes of an error answer of AWS."""
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "RunInstances",
    )


def http_answer(body: str, *, status: int = 200) -> AWSResponse:
    """An answer with this body."""
    raw = MockRawResponse(body)
    return AWSResponse(
        "https://ec2.us-east-1.amazonaws.com/", status, HTTPHeaders.from_dict({"content-type": "text/xml"}), raw
    )


@dataclass
class Account:
    """What a test holds of the account.

    Attributes:
        aws: plain boto3, to look behind our back.
        ami: an existing image.
        security_group: an existing one.
        subnets: existing ones, in different zones.
        requests: the parameters of every call that `ec2` made, as (operation, parameters).
    """

    aws: Any
    ami: str
    security_group: str
    subnets: list[str]
    requests: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def settings(self, **changed: Any) -> MachineSettings:
        """Settings that moto accepts."""
        values = {
            "ami": self.ami,
            "key_pair": "trainer",
            "security_group": self.security_group,
            "subnets": (self.subnets[0],),
            "deployment": "ours",
        }
        return MachineSettings.model_validate({**values, **changed})

    def ec2(self, *, policy: Ec2Policy = QUICK, **changed: Any) -> Ec2:
        """Our client, whose calls are noted."""
        ec2 = Ec2(self.settings(**changed), policy=policy)

        def note(params: Mapping[str, Any], model: Any, **_: object) -> None:
            self.requests.append((model.name, params))

        events(ec2).register("provide-client-params.ec2", note)
        return ec2

    def asked(self, operation: str) -> list[Mapping[str, Any]]:
        """The parameters of each call of this operation."""
        return [params for name, params in self.requests if name == operation]

    def alive(self) -> list[str]:
        """IDs of all instances that run, whoever launched them."""
        answer = self.aws.describe_instances(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )
        return [raw["InstanceId"] for group in answer["Reservations"] for raw in group["Instances"]]


def owner(**changed: Any) -> Owner:
    """Build 7 of pipeline `iris`."""
    values: dict[str, Any] = {
        "pipeline": "iris",
        "partition": "7",
        "dagster_run": "run-1",
        "mlflow_run": "mlflow-1",
        "power_off_at": POWER_OFF_AT,
    }
    return Owner(**{**values, **changed})


def events(ec2: Ec2) -> Any:
    """The hooks of the client's own boto3 client: the only place where AWS's answers can be changed."""
    return ec2._api.client.meta.events


def inject(ec2: Ec2, operation: str, *faults: Callable[[], AWSResponse] | Exception) -> list[AWSRequest]:
    """Let the next calls of an operation end in these faults, one each; then AWS is well again.

    Args:
        ec2: whose calls.
        operation: such as RunInstances.
        faults: an exception is raised before AWS hears anything; of a callable, the answer is put in
            the place of AWS's own, after AWS did what it was asked for.

    Returns:
        The requests that were sent so far.
    """
    waiting = list(faults)
    sent: list[AWSRequest] = []

    def answer(request: AWSRequest, **_: object) -> AWSResponse | None:
        sent.append(request)
        if not waiting:
            return None
        fault = waiting.pop(0)
        if isinstance(fault, Exception):
            raise fault
        return fault()

    events(ec2).register_first(f"before-send.ec2.{operation}", answer)
    return sent


def lose_answers(ec2: Ec2, operation: str, error: Exception, *, times: int = 1) -> None:
    """Let AWS do what the next calls ask for, but lose its answers on the way."""
    left = [error] * times

    def lose(**_: object) -> None:
        if left:
            raise left.pop()

    events(ec2).register_first(f"response-received.ec2.{operation}", lose)


@contextmanager
def open_account(monkeypatch: pytest.MonkeyPatch, *, endpoint: str | None = None) -> Iterator[Account]:
    """An account with networks, a security group and a key pair, the only one that the environment names.

    Args:
        monkeypatch: sets the environment.
        endpoint: address of a moto server; default: moto inside this process.
    """
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # a second and a half for each test
    monkeypatch.setattr(moto.settings, "ENABLE_KEYPAIR_VALIDATION", True)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with nullcontext() if endpoint else mock_aws():
        aws = boto3.session.Session().client("ec2")
        aws.import_key_pair(KeyName="trainer", PublicKeyMaterial=HostKey.generate().public.encode())
        subnets = aws.describe_subnets()["Subnets"]
        yield Account(
            aws=aws,
            ami=aws.register_image(Name="trainer")["ImageId"],
            security_group=aws.create_security_group(GroupName="trainers", Description="d")["GroupId"],
            subnets=[subnet["SubnetId"] for subnet in subnets],
        )
