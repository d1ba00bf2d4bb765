"""MLflow behind AWS's login: signatures that a real HTTP server checks, and SageMaker's ARNs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import MetadataRetrievalError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowNotFound, MlflowRefused, MlflowRejected, MlflowUnavailable, SettingsError
from orchestrator.resources.mlflow import Run
from orchestrator_sandbox.ec2.signature import SandboxCredentials
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import FaultyProxy, ProxyFault
from orchestrator_tests.support.aws_signature import SignatureCheck
from orchestrator_tests.support.mlflow_client import SHORT, client

REGION = "eu-west-1"
SERVER = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-tracking-server/team"
APP = f"arn:aws:sagemaker:{REGION}:123456789012:mlflow-app/app-ABC"
REFUSAL = ProxyFault(status=403, body='{"Message": "The security token is invalid"}', content_type="application/json")
HELD = SandboxCredentials()
"""The credentials of this process; AWS accepts them."""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", HELD.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", HELD.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def gateway(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    """MLflow behind an API Gateway that lets signed requests in."""
    check = SignatureCheck(HELD, "execute-api", REGION)
    with FaultyProxy(mlflow_server.url) as proxy, proxy.faulty(REFUSAL, applies=check.refuses):
        yield proxy


class TestSignature:
    def test_each_kind_of_request_is_signed(self, gateway: FaultyProxy, mlflow_server: MlflowServer) -> None:
        experiment = mlflow_server.experiment("signed")
        with client(gateway.url, aws_sigv4=True) as mlflow:
            run = mlflow.create_run(experiment, name="a run", tags={"ü & '": "a b+c"})
            mlflow.set_tags(run.id, {"über": "größer"})
            assert mlflow.metric_history(run.id, "a metric") == []
            assert mlflow.find_run(experiment, tags={"ü & '": "a b+c"}) is not None
            content = io.BytesIO(b"x" * 3_000_000)
            mlflow.log_artifact(run.id, "a folder/größe+1.bin", content)

    def test_a_blank_in_the_query_is_no_plus(self, gateway: FaultyProxy) -> None:
        with client(gateway.url, aws_sigv4=True) as mlflow, pytest.raises(Exception, match="no experiment with ID a b"):
            mlflow.experiment("a b+c/d~e")
        assert "experiment_id=a%20b%2Bc%2Fd~e" in gateway.seen[0].path

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_in_the_query_is_signed_as_aws_reads_it(self, gateway: FaultyProxy, text: str) -> None:
        check = SignatureCheck(HELD, "execute-api", REGION)
        with client(gateway.url, aws_sigv4=True) as mlflow, contextlib.suppress(MlflowNotFound, MlflowRejected):
            mlflow.experiment(text)
        assert not check.refuses(gateway.seen[-1])

    def test_only_what_aws_looks_at_is_signed(self, gateway: FaultyProxy) -> None:
        with client(gateway.url, aws_sigv4=True, workspace="team-a") as mlflow, pytest.raises(Exception, match="works"):
            mlflow.experiment("0")
        authorization = gateway.seen[0].headers["Authorization"]
        assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-mlflow-workspace," in authorization

    def test_the_session_of_a_role_is_named(self, gateway: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-role")
        with client(gateway.url, aws_sigv4=True) as mlflow:
            assert mlflow.experiment("0").name == "Default"
        assert gateway.seen[0].headers["X-Amz-Security-Token"] == "of-the-role"
        assert "x-amz-security-token" in gateway.seen[0].headers["Authorization"]

    @pytest.mark.parametrize(("aws_sigv4", "advice"), [(True, "execute-api:Invoke"), (False, "TRACKING_TOKEN")])
    def test_a_refusal_says_what_is_missing(
        self, gateway: FaultyProxy, monkeypatch: pytest.MonkeyPatch, aws_sigv4: bool, advice: str
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with (
            client(gateway.url, aws_sigv4=aws_sigv4) as mlflow,
            pytest.raises(MlflowRefused, match="403 Forbidden: The security token is invalid from MLflow at") as error,
        ):
            mlflow.experiment("0")
        assert advice in str(error.value)

    def test_a_login_gives_way_to_the_signature_as_for_mlflow_s_own_client(self, gateway: FaultyProxy) -> None:
        with client(gateway.url, aws_sigv4=True, username="ann", password="s3cret") as mlflow:
            assert mlflow.experiment("0").name == "Default"

    def test_without_credentials_nothing_is_asked(self, gateway: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        without_credentials(monkeypatch)
        with (
            client(gateway.url, aws_sigv4=True) as mlflow,
            pytest.raises(MlflowRefused, match=r"no AWS credentials to sign requests with .*AWS_ACCESS_KEY_ID"),
        ):
            mlflow.experiment("0")
        assert not gateway.seen

    def test_credentials_that_cannot_be_renewed_now_are_asked_for_again(
        self, gateway: FaultyProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter([False, False, True])

        class Renewed(Credentials):
            def get_frozen_credentials(self) -> ReadOnlyCredentials:
                if not next(answers):
                    raise MetadataRetrievalError(error_msg="timed out")
                return super().get_frozen_credentials()

        monkeypatch.setattr(
            "orchestrator.resources.mlflow.aws.boto3.session.Session.get_credentials",
            lambda _: Renewed(HELD.key_id, HELD.secret),
        )
        with client(gateway.url, aws_sigv4=True) as mlflow:
            assert mlflow.experiment("0").name == "Default"
        answers = iter([False] * 100)
        with (
            client(gateway.url, aws_sigv4=True, policy=SHORT.with_total(0.2)) as mlflow,
            pytest.raises(MlflowUnavailable, match=r"timed out\): check AWS_ACCESS_KEY_ID") as error,
        ):
            mlflow.experiment("0")
        assert "see whether the server runs" not in str(error.value)

    def test_without_a_region_there_is_no_signature(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(SettingsError, match="MLFLOW_TRACKING_AWS_SIGV4 needs to know the region"):
            client("https://127.0.0.1:1", aws_sigv4=True)

    def test_a_profile_that_is_not_there_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_AWS_SIGV4: .*\(nobody\)"):
            client("https://127.0.0.1:1", aws_sigv4=True)


class TestManaged:
    @pytest.mark.parametrize(
        ("arn", "header", "service"),
        [
            (SERVER, "x-mlflow-sm-tracking-server-arn", "sagemaker-mlflow"),
            (APP, "x-sm-mlflow-app-arn", "sagemaker"),
        ],
    )
    def test_it_is_asked_as_its_own_plugin_asks_it(
        self, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, arn: str, header: str, service: str
    ) -> None:
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")  # the ARN's region counts
        check = SignatureCheck(HELD, service, REGION, frozenset({header}))
        with (
            FaultyProxy(mlflow_server.url) as proxy,
            proxy.faulty(REFUSAL, applies=check.refuses),
            client(f" {arn}\n", sagemaker_endpoint=proxy.url) as mlflow,
        ):
            run = mlflow.create_run("0", name="managed", tags={"a": "b c"})
            mlflow.finish(run.id, "FINISHED", reason="done")
            assert mlflow.uri == proxy.url
            assert {request.headers[header] for request in proxy.seen} == {arn}

    @pytest.mark.parametrize(
        ("arn", "uri"),
        [
            (SERVER, "https://eu-west-1.experiments.sagemaker.aws"),
            (APP, "https://mlflow.sagemaker.eu-west-1.app.aws"),
            (
                "arn:aws-us-gov:sagemaker:us-gov-west-1:123456789012:mlflow-tracking-server/x",
                "https://us-gov-west-1.experiments.sagemaker.aws",
            ),
        ],
    )
    def test_its_address_comes_from_the_arn_and_its_pages_from_the_setting(self, arn: str, uri: str) -> None:
        answer = {"run": {"info": {"run_id": "a1", "experiment_id": "3", "status": "RUNNING"}}}
        with client(arn) as mlflow:
            assert mlflow.uri == uri
            assert mlflow.run_url(Run.from_json(answer)) is None
        with client(arn, ui_url="https://ml.example.com") as mlflow:
            assert mlflow.run_url(Run.from_json(answer)) == "https://ml.example.com/#/experiments/3/runs/a1"

    @pytest.mark.parametrize(
        "arn",
        [
            "arn:aws:sagemaker:eu-west-1:123456789012:notebook-instance/team",
            "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server",
            "arn:aws-cn:sagemaker:cn-north-1:123456789012:mlflow-tracking-server/team",
            "arn:aws:s3:::bucket",
            "ARN:aws:sagemaker",
            f"{SERVER}/#/experiments/3",
        ],
    )
    def test_another_arn_is_refused(self, arn: str) -> None:
        with pytest.raises(SettingsError, match=r"is not the ARN of SageMaker's managed MLflow: write one such as arn"):
            client(arn)

    @pytest.mark.parametrize(
        ("arn", "permission"),
        [(SERVER, f"allow them sagemaker-mlflow:* on {SERVER}"), (APP, "allow them sagemaker:CallMlflowAppApi and")],
    )
    def test_a_refusal_names_the_permission(self, monkeypatch: pytest.MonkeyPatch, arn: str, permission: str) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with FaultyProxy() as proxy, client(arn, sagemaker_endpoint=proxy.url) as mlflow:
            proxy.standing = REFUSAL
            with pytest.raises(MlflowRefused) as error:
                mlflow.experiment("0")
        assert f"signed with the orchestrator's AWS credentials: {permission}" in str(error.value)

    def test_an_endpoint_that_is_none_is_named(self) -> None:
        with pytest.raises(SettingsError, match="SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT has to begin with http"):
            client(SERVER, sagemaker_endpoint="vpce-1.example.com")


def test_a_signature_is_made_anew_for_each_try(gateway: FaultyProxy) -> None:
    gateway.faults.append(ProxyFault(status=503))
    with client(gateway.url, aws_sigv4=True) as mlflow:
        assert mlflow.experiment("0").name == "Default"
    assert len(gateway.seen) == 2
