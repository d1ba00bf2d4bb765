"""An MLflow that the instance cannot reach is refused before it is launched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SettingsError
from orchestrator.pipeline.training.reach import require_mlflow_in_reach
from orchestrator.resources.ec2 import Ec2
from orchestrator.settings.groups import MachineSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.environment import COMPLETE

AWS = "https://ec2.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    "host", ["localhost", "localhost.", "LOCALHOST", "127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
@pytest.mark.parametrize("ec2", [AWS, "https://ec2.cn-north-1.amazonaws.com.cn", "https://ec2.eu-west-1.api.aws"])
def test_an_mlflow_on_this_machine_is_out_of_reach_of_an_instance_of_aws(host: str, ec2: str) -> None:
    with pytest.raises(SettingsError, match="MLFLOW_TRACKING_URI_ON_INSTANCE"):
        require_mlflow_in_reach(f"http://{host}:5000", ec2=ec2)


@pytest.mark.parametrize(
    ("mlflow", "ec2"),
    [
        ("http://localhost:5000", "http://localhost:4566"),
        ("http://127.0.0.1:5000", "http://moto:5000"),
        ("https://mlflow.example.com", AWS),
        ("http://10.0.0.7:5000", AWS),
        ("http://localhost.example.com", AWS),
    ],
)
def test_any_other_may_be_in_reach(mlflow: str, ec2: str) -> None:
    require_mlflow_in_reach(mlflow, ec2=ec2)


@given(st.text())
def test_any_address_is_judged(text: str) -> None:
    require_mlflow_in_reach(f"http://{text}", ec2="http://127.0.0.1:1")


def test_the_address_of_the_ec2_api_is_what_boto3_really_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SettingsSource(lookup=COMPLETE.get).read(MachineSettings)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert Ec2(machine).address == AWS
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"):
        monkeypatch.setenv(name, "http://127.0.0.1:4566")
        assert Ec2(machine).address == "http://127.0.0.1:4566"
        monkeypatch.delenv(name)
