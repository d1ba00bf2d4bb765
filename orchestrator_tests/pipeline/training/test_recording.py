"""A training that is over and paid for is recorded, now or by a later attempt, whatever MLflow says meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.errors import MlflowError, MlflowRefused, MlflowRejected, MlflowTooLarge, MlflowUnavailable
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.pipeline.training.finished import FinishedTraining, Usage
from orchestrator.pipeline.training.mlflow_run import TrackedRun
from orchestrator.pipeline.training.plan import Plan, make_plan
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow import Mlflow
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import HUNG_UP, FaultyProxy, ProxyFault, Request
from orchestrator_tests.support.client_certificates import Authority
from orchestrator_tests.support.mlflow_client import SHORT, client, post

USAGE = Usage(instance_id="i-1", instance_type="t3.medium", market="spot", minutes=12.5, usd=0.01)
BUILD = Build(
    number=12,
    timestamp=1_700_000_000_000,
    result="SUCCESS",
    job="churn",
    duration_ms=1000,
    url="https://jenkins.example.com/job/churn/12/",
    commit="c0ffee" * 6 + "c0ff",
    branch="main",
    repository="https://github.com/acme/churn.git",
)


def answer(status: int, message: str = "", *, code: str = "INVALID_PARAMETER_VALUE") -> ProxyFault:
    """An answer of MLflow's own."""
    body = json.dumps({"error_code": code, "message": message})
    return ProxyFault(status=status, body=body, content_type="application/json")


def to(endpoint: str, body: str = "") -> Callable[[Request], bool]:
    return lambda request: endpoint in request.path and body.encode() in request.body


def params(request: Request) -> dict[str, str]:
    sent = json.loads(request.body).get("params", []) if "log-batch" in request.path else []
    return {param["key"]: param["value"] for param in sent}


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(mlflow_server.url) as running:
        yield running


class Trained:
    """A training whose process exited 0, and what records it."""

    def __init__(self, proxy: FaultyProxy, server: MlflowServer) -> None:
        self._server = server
        values = {
            **{"JENKINS_URL": "http://127.0.0.1:1/", "JENKINS_USER": "nobody", "JENKINS_TOKEN": "unused"},
            **{"JENKINS_JOB_NAME": "churn", "AMI_ID": "ami-1", "KEY_PAIR_NAME": "key", "KEY_PATH": "/key"},
            **{"SECURITY_GROUP_ID": "sg-1", "AWS_DEFAULT_REGION": "eu-central-1", "MLFLOW_PATIENCE_MINUTES": "0"},
            "MLFLOW_TRACKING_URI": proxy.url,
            "MLFLOW_EXPERIMENT_ID": server.experiment("recording"),
        }
        self._settings = PipelineSettings.read(SettingsSource(pipeline="churn", lookup=values.get))
        self._mlflow = Mlflow(self._settings.mlflow, policy=SHORT.with_total(0.2))
        self._root = uuid4().hex
        self.id = ""

    def plan(self, parameters: dict[str, str]) -> Plan:
        return make_plan(
            pipeline="churn",
            partition="12",
            build=BUILD,
            settings=self._settings,
            config=TrainingConfig(parameters=dict(parameters)),
        )

    def run(
        self, parameters: dict[str, str], *, trained: str | None = None, mlflow: Mlflow | None = None
    ) -> TrackedRun:
        return TrackedRun(
            mlflow or self._mlflow,
            self._settings.mlflow,
            self.plan(parameters),
            deployment="tests",
            dagster_run=uuid4().hex if trained else self._root,
            root_run=self._root,
            trained=trained,
        )

    def train(self, parameters: dict[str, str] | None = None) -> TrackedRun:
        run = self.run(parameters or {})
        self.id = run.open()
        metric = {"key": "loss", "value": 0.5, "step": 3, "timestamp": 3}
        post(self._server.url, "runs/log-batch", run_id=self.id, metrics=[metric])
        return run

    def again(self) -> FinishedTraining:
        """Recorded by a later attempt, which has nothing but the ID."""
        return self.run({}, trained=self.id).finished(None)


@pytest.fixture
def training(proxy: FaultyProxy, mlflow_server: MlflowServer) -> Trained:
    return Trained(proxy, mlflow_server)


LOGIN_PAGE = ProxyFault(status=302, headers={"Location": "https://sso.example.com/realms/x/openid-connect/auth"})
SPOILT = {
    "401": (answer(401, code="UNAUTHENTICATED"), MlflowRefused),
    "403": (answer(403, code="PERMISSION_DENIED"), MlflowRefused),
    "a login page": (LOGIN_PAGE, MlflowRefused),
    "400": (answer(400, "the run is not in the state"), MlflowRejected),
    "413": (ProxyFault(status=413, body="<html>too large</html>"), MlflowError),
    "another shape": (ProxyFault(body='{"run": 7}', content_type="application/json"), MlflowError),
    "nested too deep": (ProxyFault(body="[" * 100_000, content_type="application/json"), MlflowTooLarge),
    "away": (HUNG_UP, MlflowUnavailable),
}


@pytest.mark.parametrize(
    ("endpoint", "fault", "kind"),
    [
        *(pytest.param("runs/get", *spoilt, id=name) for name, spoilt in SPOILT.items()),
        *(pytest.param("runs/update", *SPOILT[name], id=f"{name}, as it is ended") for name in ("401", "413", "away")),
        pytest.param("runs/search", *SPOILT["403"], id="403, as others are looked for"),
    ],
)
def test_whatever_keeps_it_from_being_recorded_says_that_it_is_trained_and_a_later_attempt_records_it(
    training: Trained, proxy: FaultyProxy, endpoint: str, fault: ProxyFault, kind: type[MlflowError]
) -> None:
    run = training.train()
    with proxy.faulty(fault, applies=to(endpoint)), pytest.raises(kind) as error:
        run.finished(USAGE)
    assert type(error.value) is kind
    cure = "MLflow is back" if kind is MlflowUnavailable else "that is put right"
    assert str(error.value).startswith(
        f"build 12 is trained, but could not be recorded from MLflow run {training.id}: "
    )
    assert str(error.value).endswith(
        f"When {cure}, re-execute this run from failure: it records without training again"
    )
    assert training.again().run.id == training.id


def asks_for_a_certificate(proxy: FaultyProxy, folder: Path) -> FaultyProxy:
    authority = Authority(folder)
    return FaultyProxy(proxy.url, certificate=authority.issue("server"), client_ca=authority.file)


@pytest.mark.parametrize("lost", ["certificate", "file", "permission", "credentials"])
def test_no_kind_of_login_that_is_lost_takes_a_training_back(
    training: Trained, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    training.train()
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    if lost == "permission":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OURS")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    ca = tmp_path / "authority.pem"
    with asks_for_a_certificate(proxy, tmp_path) as guarded:
        fields: dict[str, dict[str, Any]] = {
            "certificate": {"uri": guarded.url, "ca_bundle": ca},
            "file": {"uri": guarded.url, "ca_bundle": ca, "client_certificate": tmp_path / "server.pem"},
            "permission": {"uri": proxy.url, "aws_sigv4": True},
            "credentials": {"uri": proxy.url, "aws_sigv4": True},
        }
        mlflow = client(**fields[lost], policy=SHORT.with_total(0.2))
        if lost == "file":
            (tmp_path / "server.pem").unlink()
        if lost == "permission":
            proxy.standing = ProxyFault(status=403, body='{"message": "Forbidden"}', content_type="application/json")
        with mlflow, pytest.raises(MlflowRefused) as error:
            training.run({}, trained=training.id, mlflow=mlflow).finished(USAGE)
    proxy.standing = None
    assert str(error.value).startswith(f"build 12 is trained, but could not be recorded from MLflow run {training.id}")
    assert str(error.value).endswith("re-execute this run from failure: it records without training again")
    assert training.again().run.id == training.id


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("Param value '{value:.250}' had length {length}, which exceeded length limit of 500", 500),
        ("'params[0].value' exceeds the maximum length of 300 characters", 300),
        ("Parameter value is too long", 250),
        ("Param value 'length limit of 9' had length {length}, which exceeded length limit of 400", 400),
        ("Param value had length {length}, which exceeded length limit of 99999", 250),
    ],
)
def test_a_parameter_that_is_too_long_for_an_old_server_is_cut_to_what_it_says(
    training: Trained, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture, message: str, limit: int
) -> None:
    value = "é" * 700
    run = training.train({"text": value, "alpha": "1"})

    def too_long(request: Request) -> bool:
        return any(len(each) > limit for each in params(request).values())

    with proxy.faulty(answer(400, message.format(value=value, length=700)), applies=too_long):
        finished = run.finished(USAGE)
    assert finished.run.params == {"text": value[:limit], "alpha": "1"}
    assert (
        f"Logged parameter text of MLflow run {training.id} without its end: MLflow there takes {limit}" in caplog.text
    )


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (answer(400, "Invalid parameter name: 'lr-1'"), "lr-1"),
        (answer(400, "Changing param values is not allowed. Param with key='x' was already logged"), "x"),
        (ProxyFault(status=413, body="<html>too large</html>"), "big"),
    ],
)
def test_a_parameter_that_cannot_be_logged_is_a_warning(
    training: Trained, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture, fault: ProxyFault, name: str
) -> None:
    run = training.train({name: "1" * 600, "alpha": "2"})
    with proxy.faulty(fault, applies=lambda request: name in params(request)):
        finished = run.finished(USAGE)
    assert (finished.run.params, finished.run.status) == ({"alpha": "2"}, "FINISHED")
    assert finished.usage == USAGE
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [warning.partition(":")[0] for warning in warnings] == [
        f"Not logged parameter {name} of MLflow run {training.id}"
    ]


@pytest.mark.parametrize(
    ("applies", "warning"),
    [
        (to("metrics/get-history"), "Left out learning curves of MLflow run"),
        (to("runs/log-batch", "ec2.minutes"), "Not recorded in MLflow what instance i-1 cost"),
        (to("runs/search", "orchestrator.training"), "Recording nothing of the other runs"),
    ],
    ids=["curves", "cost", "other runs"],
)
@pytest.mark.parametrize(
    "fault", [answer(400, "no"), answer(404, "no", code="NOT"), ProxyFault(status=418, body="tea")]
)
def test_what_decorates_the_record_never_keeps_it_back(
    training: Trained,
    proxy: FaultyProxy,
    caplog: pytest.LogCaptureFixture,
    applies: Callable[[Request], bool],
    warning: str,
    fault: ProxyFault,
) -> None:
    run = training.train()
    with proxy.faulty(fault, applies=applies):
        finished = run.finished(USAGE)
    assert (finished.run.id, finished.run.metrics, finished.usage) == (training.id, {"loss": 0.5}, USAGE)
    assert warning in caplog.text


def test_a_login_that_went_meanwhile_leaves_no_parameter_out(training: Trained, proxy: FaultyProxy) -> None:
    run = training.train({"alpha": "1"})
    with (
        proxy.faulty(answer(401, code="UNAUTHENTICATED"), applies=lambda request: bool(params(request))),
        pytest.raises(MlflowRefused, match="is trained, but could not be recorded"),
    ):
        run.finished(USAGE)
    later = training.run({"alpha": "1"}, trained=training.id).finished(USAGE)
    assert later.run.params == {"alpha": "1"}
