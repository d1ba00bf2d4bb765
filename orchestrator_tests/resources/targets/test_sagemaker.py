"""A SageMaker endpoint as target: the order of calls, by botocore's Stubber, which knows what AWS's API takes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.stub import ANY, Stubber

from orchestrator.errors import DeploymentFailed, TargetHeld, TargetUnavailable
from orchestrator.resources.retry import RetryPolicy
from orchestrator.resources.targets import SageMakerTarget, TargetBlock
from orchestrator_tests.support.releases import model_folder, release

ARN = "arn:aws:sagemaker:us-east-1:123456789012"
AT_ONCE = RetryPolicy(
    total_seconds=30, connect_seconds=1, answer_seconds=1, first_pause_seconds=0.001, longest_pause_seconds=0.002
)
BLOCK = """{"sagemaker": {"endpoint": "churn", "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/mlflow:3",
  "role": "arn:aws:iam::123456789012:role/sagemaker", "s3": "s3://models/sagemaker"}}"""


class Aws:
    """SageMaker's answers, in their order, and what was put into S3."""

    def __init__(self) -> None:
        options = {"region_name": "us-east-1", "aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        self.clients: dict[str, Any] = {
            name: boto3.session.Session().client(name, **options)  # type: ignore[call-overload]
            for name in ("sagemaker", "sagemaker-runtime")
        }
        self.sagemaker = Stubber(self.clients["sagemaker"])
        self.runtime = Stubber(self.clients["sagemaker-runtime"])
        self.uploads: list[tuple[str, str, list[str]]] = []
        self.clients["s3"] = self

    def upload_file(self, path: str, bucket: str, key: str) -> None:
        with tarfile.open(path) as tar:
            self.uploads.append((bucket, key, sorted(tar.getnames())))

    def target(self) -> SageMakerTarget:
        block = TargetBlock.parse(BLOCK).sagemaker
        assert block is not None
        return SageMakerTarget(block.spec(), waiting=AT_ONCE, client=self.clients.__getitem__)

    def endpoint(self, status: str, config: str, **more: str) -> None:
        answer = {
            "EndpointName": "churn",
            "EndpointArn": f"{ARN}:endpoint/churn",
            "EndpointConfigName": config,
            "EndpointStatus": status,
            "CreationTime": 0,
            "LastModifiedTime": 0,
            **more,
        }
        self.sagemaker.add_response("describe_endpoint", answer, {"EndpointName": "churn"})

    def no_endpoint(self) -> None:
        self.sagemaker.add_client_error("describe_endpoint", "ValidationException", 'Could not find endpoint "churn".')

    def holds(self, version: int, status: str = "InService", **tags: str) -> None:
        """What a look at the endpoint finds."""
        config = f"churn-{version}"
        self.endpoint(status, config)
        variant = {"VariantName": "model", "ModelName": config}
        self.sagemaker.add_response(
            "describe_endpoint_config",
            {
                "EndpointConfigName": config,
                "EndpointConfigArn": f"{ARN}:endpoint-config/{config}",
                "ProductionVariants": [variant],
                "CreationTime": 0,
            },
            {"EndpointConfigName": config},
        )
        arn = f"{ARN}:model/{config}"
        model = {"ModelName": config, "ModelArn": arn, "CreationTime": 0}
        self.sagemaker.add_response("describe_model", model, {"ModelName": config})
        fields = {"model": "churn", "version": str(version), "run_id": f"run{version}", "pipeline": "churn"}
        values = {**fields, "deployment": "lab", **tags}
        listed = [{"Key": f"orchestrator:{key}", "Value": value} for key, value in values.items()]
        self.sagemaker.add_response("list_tags", {"Tags": listed}, {"ResourceArn": arn})

    def makes(self, version: int) -> None:
        """Model and configuration of a release."""
        self.sagemaker.add_response("create_model", {"ModelArn": f"{ARN}:model/new"}, None)
        self.sagemaker.add_response(
            "create_endpoint_config",
            {"EndpointConfigArn": f"{ARN}:endpoint-config/new"},
            {"EndpointConfigName": ANY, "ProductionVariants": ANY, "Tags": ANY},
        )

    def removes(self) -> None:
        self.sagemaker.add_response("delete_endpoint_config", {}, {"EndpointConfigName": ANY})
        self.sagemaker.add_response("delete_model", {}, {"ModelName": ANY})

    def updates(self, config: object = ANY) -> None:
        expected = {"EndpointName": "churn", "EndpointConfigName": config}
        self.sagemaker.add_response("update_endpoint", {"EndpointArn": f"{ARN}:endpoint/churn"}, expected)

    def creates(self) -> None:
        expected = {"EndpointName": "churn", "EndpointConfigName": ANY}
        self.sagemaker.add_response("create_endpoint", {"EndpointArn": f"{ARN}:endpoint/churn"}, expected)

    def predicts(self, *, well: bool = True) -> None:
        if well:
            expected = {"EndpointName": "churn", "ContentType": "application/json", "Body": ANY}
            self.runtime.add_response("invoke_endpoint", {"Body": b"{}"}, expected)
        else:
            self.runtime.add_client_error("invoke_endpoint", "ModelError", "column x is missing")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    aws = Aws()
    # The name of what is made holds the time.
    monkeypatch.setattr(SageMakerTarget, "_new_name", lambda _, release: f"churn-{release.version}")
    with aws.sagemaker, aws.runtime:
        yield aws
        aws.sagemaker.assert_no_pending_responses()
        aws.runtime.assert_no_pending_responses()


def test_the_first_deployment_makes_the_endpoint(aws: Aws, tmp_path: Path) -> None:
    aws.no_endpoint()
    aws.makes(1)
    aws.creates()
    aws.endpoint("Creating", "churn-1")
    aws.endpoint("InService", "churn-1")
    aws.predicts()
    assert aws.target().deploy(release(1), model_folder(tmp_path, 1)) is None
    [(bucket, key, files)] = aws.uploads
    assert (bucket, key) == ("models", "sagemaker/churn-1/model.tar.gz")
    assert "MLmodel" in files


def test_the_next_one_updates_it(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1)
    aws.makes(2)
    aws.updates("churn-2")
    aws.endpoint("Updating", "churn-1")
    aws.endpoint("InService", "churn-2")
    aws.predicts()
    before = aws.target().deploy(release(2), model_folder(tmp_path, 2))
    assert before is not None
    assert before.version == "1"


def test_a_model_that_does_not_start_leaves_the_one_before(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1)
    aws.makes(2)
    aws.updates("churn-2")
    aws.endpoint("InService", "churn-1", FailureReason="The container did not pass the ping health check.")
    aws.endpoint("InService", "churn-1")
    aws.removes()
    with pytest.raises(DeploymentFailed, match="ping health check"):
        aws.target().deploy(release(2), model_folder(tmp_path, 2))


def test_a_model_that_does_not_predict_is_rolled_back(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1)
    aws.makes(2)
    aws.updates("churn-2")
    aws.endpoint("InService", "churn-2")
    aws.predicts(well=False)
    aws.endpoint("InService", "churn-2")
    aws.updates("churn-1")
    aws.endpoint("InService", "churn-1")
    aws.removes()
    with pytest.raises(DeploymentFailed, match="column x is missing"):
        aws.target().deploy(release(2), model_folder(tmp_path, 2))


def test_a_model_that_hangs_is_rolled_back(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(**_: object) -> None:
        raise ReadTimeoutError(endpoint_url="https://runtime.sagemaker.us-east-1.amazonaws.com")

    monkeypatch.setattr(aws.clients["sagemaker-runtime"], "invoke_endpoint", hang)
    aws.holds(1)
    aws.makes(2)
    aws.updates("churn-2")
    aws.endpoint("InService", "churn-2")
    aws.endpoint("InService", "churn-2")
    aws.updates("churn-1")
    aws.endpoint("InService", "churn-1")
    aws.removes()
    with pytest.raises(DeploymentFailed, match="Read timeout"):
        aws.target().deploy(release(2), model_folder(tmp_path, 2))


def test_a_first_model_that_fails_leaves_no_endpoint(aws: Aws, tmp_path: Path) -> None:
    aws.no_endpoint()
    aws.makes(1)
    aws.creates()
    aws.endpoint("Failed", "churn-1", FailureReason="no such image")
    aws.endpoint("Failed", "churn-1")
    aws.sagemaker.add_response("delete_endpoint", {}, {"EndpointName": "churn"})
    aws.no_endpoint()
    aws.removes()
    with pytest.raises(DeploymentFailed, match="no such image"):
        aws.target().deploy(release(1), model_folder(tmp_path, 1))


def test_an_endpoint_that_failed_is_made_again(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1, "Failed")
    aws.makes(2)
    aws.sagemaker.add_response("delete_endpoint", {}, {"EndpointName": "churn"})
    aws.no_endpoint()
    aws.creates()
    aws.endpoint("InService", "churn-2")
    aws.predicts()
    assert aws.target().deploy(release(2), model_folder(tmp_path, 2)) is None


def test_the_state_is_what_its_tags_say(aws: Aws) -> None:
    aws.holds(7, build="40", commit="c0ffee")
    found = aws.target().state()
    assert found is not None
    assert (found.version, found.build, found.commit) == ("7", "40", "c0ffee")
    aws.holds(7, "Failed")
    assert aws.target().state() is None
    aws.no_endpoint()
    assert aws.target().state() is None


def test_the_same_again_changes_nothing(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1)
    before = aws.target().deploy(release(1), model_folder(tmp_path, 1))
    assert before is not None
    assert aws.uploads == []


def test_what_others_hold_or_change_is_left_alone(aws: Aws, tmp_path: Path) -> None:
    aws.holds(1, pipeline="other")
    with pytest.raises(TargetHeld, match="pipeline 'other'"):
        aws.target().deploy(release(2), model_folder(tmp_path, 2))
    aws.holds(1, deployment="")
    with pytest.raises(TargetHeld, match="which the orchestrator has not made"):
        aws.target().state()
    aws.holds(1, "Updating")
    with pytest.raises(TargetUnavailable, match="is Updating already"):
        aws.target().deploy(release(2), model_folder(tmp_path, 2))
    aws.sagemaker.add_client_error("describe_endpoint", "AccessDeniedException", "not authorized")
    with pytest.raises(TargetUnavailable, match="not authorized"):
        aws.target().state()
