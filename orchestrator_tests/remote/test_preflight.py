"""What a training cannot do without is looked at on its machine first, and told in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.pipeline.training.cause import cause_of_failure
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.git_servers import answering, served
from orchestrator_tests.support.hooked import hook, mlflow_run, mlproject

BEGINS = "orchestrator: the training cannot begin: "
NOT_LOGGED_IN = b"You are not authenticated. Please see the documentation"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return mlproject(tmp_path / "project", "print('trained')")


def fault_in(output: str) -> str:
    """The one sentence, which is the last thing that is said, and the cause with its advice."""
    last = output.rstrip().splitlines()[-1]
    assert last.startswith(BEGINS), output
    assert "Traceback" not in output
    return str(cause_of_failure(output.splitlines()))


@pytest.mark.services
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, NOT_LOGGED_IN),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
    ],
)
def test_a_login_that_mlflow_refuses_is_told_at_once(
    mlflow_server: MlflowServer, project: Path, tmp_path: Path, status: int, body: bytes
) -> None:
    handler = answering(status=status, body=body)
    with served(handler) as url:
        address = url.replace("://", "://ada:wrong@")
        ended, output, _ = mlflow_run(mlflow_server, project, home=tmp_path, address=address)
    cause = fault_in(output)
    assert ended == 1
    assert f"(MLflow at {url} refuses the login of the training: " in cause
    assert "; correct MLFLOW_TRACKING_USERNAME" in cause
    assert "wrong" not in cause
    assert "trained" not in output
    assert len(handler.asked) == 1


@pytest.mark.services
def test_an_mlflow_that_comes_up_late_is_waited_for(mlflow_server: MlflowServer, project: Path, tmp_path: Path) -> None:
    with served(answering(status=503, times=3, then=mlflow_server.url)) as url:
        status, output, held = mlflow_run(mlflow_server, project, home=tmp_path, address=url)
    assert (status, held) == (0, "FINISHED"), output
    assert output.count(f"orchestrator: MLflow at {url} does not answer yet (") == 1
    assert "trained" in output


class Client:
    """MLflow's client, which fails in these ways, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.settings: list[str | None] = []

    def __call__(self) -> Client:
        return self

    def get_run(self, _: str) -> None:
        self.settings.append(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))
        if self.errors:
            raise self.errors.pop(0)


def mlflow_fault(client: Client, monkeypatch: pytest.MonkeyPatch, *, patience: float = 90.0) -> str:
    preflight = hook("preflight")
    monkeypatch.setattr(preflight, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(preflight.time, "sleep", lambda _: None)
    fault: str = preflight.mlflow_fault(client, "0123", "https://ada:secret@mlflow.example/x?token=secret")
    return fault


REFUSED = (
    "API request to http://127.0.0.1:9/api/2.0/mlflow/runs/get failed with exception HTTPConnectionPool("
    "host='127.0.0.1', port=9): Max retries exceeded with url: /api/2.0/mlflow/runs/get (Caused by NewConnectionError("
    "'<urllib3.connection.HTTPConnection object at 0x7f>: Failed to establish a new connection: [Errno 111] "
    "Connection refused'))"
)
PAGE = "API request to endpoint /x failed with error code 502 != 200. Response body: '<html>Bad Gateway'"


@pytest.mark.parametrize(
    ("text", "reason"), [(REFUSED, "[Errno 111] Connection refused"), (PAGE, "error code 502 != 200")]
)
def test_an_mlflow_that_stays_away_is_given_up_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    fault = mlflow_fault(Client(*[OSError(text)] * 3), monkeypatch, patience=0.0)
    assert fault.startswith("MLflow at https://mlflow.example/x did not answer within 0 s: ")
    assert fault.endswith(reason)
    advice = cause_of_failure([f"{BEGINS}{fault}"]).advice or ""
    assert "MLFLOW_TRACKING_URI_ON_INSTANCE" in advice
    client = Client(*[OSError(text)] * 3)
    assert mlflow_fault(client, monkeypatch) == ""
    assert client.settings == ["0"] * 4
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert capsys.readouterr().err.count("does not answer yet") == 1


@pytest.mark.parametrize(
    "text",
    [
        "API request to endpoint /api/2.0/mlflow/runs/get failed with error code 403 != 200. Response body: 'no'",
        "UNAUTHENTICATED: no",
    ],
)
def test_a_login_that_is_refused_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    client = Client(*[OSError(text)] * 2)
    assert "refuses the login of the training" in mlflow_fault(client, monkeypatch)
    assert len(client.settings) == 1


def test_a_certificate_that_is_not_trusted_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "(Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] verify failed')))"
    client = Client(OSError(text))
    fault = mlflow_fault(client, monkeypatch)
    assert "has a certificate that is not trusted here: [SSL: CERTIFICATE_VERIFY_FAILED]" in fault
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in str(cause_of_failure([f"{BEGINS}{fault}"]).advice)


@pytest.mark.parametrize(
    ("text", "fault", "advice"),
    [
        (
            "(Caused by SSLError(SSLError(1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert (_ssl.c:2580)')))",
            "refuses the client certificate of the training, or asks for one: [SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]",
            "set MLFLOW_TRACKING_CLIENT_CERT_PATH, or MLFLOW_TRACKING_CLIENT_CERT_PATH_ON_INSTANCE",
        ),
        (
            "(Caused by SSLError(SSLError(1, '[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert (_ssl.c:1006)')))",
            "refuses the client certificate of the training, or asks for one: [SSL: SSLV3_ALERT_HANDSHAKE_FAILURE]",
            "set MLFLOW_TRACKING_CLIENT_CERT_PATH",
        ),
        (
            "INTERNAL_ERROR: Forbidden",
            "refuses the login of the training",
            "the permissions of INSTANCE_PROFILE's role",
        ),
        (
            "INTERNAL_ERROR: User: arn:aws:sts::1:assumed-role/x is not authorized to perform: sagemaker-mlflow:GetRun",
            "refuses the login of the training",
            "the permissions of INSTANCE_PROFILE's role",
        ),
        (
            "No module named 'requests_auth_aws_sigv4'",
            "cannot be asked without the package requests-auth-aws-sigv4",
            "install requests-auth-aws-sigv4 beside mlflow in AMI_ID",
        ),
        (
            " Model registry functionality is unavailable; got unsupported URI 'arn:aws:sagemaker:eu-west-1:1:x/y' for",
            "cannot be asked without the package sagemaker-mlflow",
            "install sagemaker-mlflow beside mlflow in AMI_ID",
        ),
    ],
)
def test_a_login_of_another_kind_that_is_wrong_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, text: str, fault: str, advice: str
) -> None:
    client = Client(OSError(text))
    found = mlflow_fault(client, monkeypatch)
    assert fault in found
    assert not client.errors
    assert advice in str(cause_of_failure([f"{BEGINS}{found}"]).advice)


@pytest.mark.parametrize("text", ["Unable to locate credentials", "'NoneType' object has no attribute 'access_key'"])
def test_a_role_that_does_not_come_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    found = mlflow_fault(Client(*[OSError(text)] * 3), monkeypatch, patience=0.0)
    assert found.endswith("wants signed requests, and this machine has no AWS credentials")
    assert mlflow_fault(Client(OSError(text)), monkeypatch) == "", "it may come a moment later"


@pytest.mark.services
def test_sagemaker_s_managed_mlflow_without_its_plugin_is_told(
    mlflow_server: MlflowServer, project: Path, tmp_path: Path
) -> None:
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/team"
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path, address=arn)
    assert status == 1
    assert f"(MLflow at {arn} cannot be asked without the package sagemaker-mlflow); install" in fault_in(output)


@pytest.mark.services
def test_another_mlflow_that_does_not_know_the_run_is_told(
    mlflow_server: MlflowServer, project: Path, tmp_path: Path
) -> None:
    body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=1 not found"}'
    with served(answering(status=404, body=body)) as url:
        status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path, address=url)
    assert status == 1
    assert "; MLFLOW_TRACKING_URI_ON_INSTANCE leads to another server than MLFLOW_TRACKING_URI" in fault_in(output)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a disk of so many MB."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={request.param}m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.services
@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_a_disk_that_is_nearly_full_is_told_before_anything_is_fetched(
    mlflow_server: MlflowServer, project: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path)
    assert status == 1
    assert f"{small_disk} has 64 MB left on its disk, and a training needs 200 MB at least" in fault_in(output)
    assert "raise ROOT_VOLUME_GB" in output


@pytest.mark.services
@pytest.mark.parametrize("small_disk", [700], indirect=True)
def test_a_disk_with_little_room_is_a_warning(
    mlflow_server: MlflowServer, project: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    status, output, held = mlflow_run(mlflow_server, project, home=tmp_path)
    assert (status, held) == (0, "FINISHED"), output
    assert f"orchestrator: there is little room left: 700 MB on the disk of {small_disk}" in output


def test_a_place_that_tells_nothing_of_its_disk_is_no_fault(tmp_path: Path) -> None:
    assert hook("preflight").disk_fault([str(tmp_path / "none")]) == ""


@pytest.mark.services
@pytest.mark.parametrize(
    ("environment", "program", "advice"),
    [
        ("python_env: python_env.yaml", "pyenv", "MLPROJECT_ENV_MANAGER"),
        ("conda_env: conda.yaml", "conda", "there is no conda on the instance"),
        ("docker_env: {image: tiny}", "docker", "there is no Docker in AMI_ID"),
    ],
)
def test_an_environment_manager_that_is_missing_is_named(
    mlflow_server: MlflowServer,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: str,
    program: str,
    advice: str,
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("git", "bash", "sh", "env"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    monkeypatch.delenv("CONDA_EXE", raising=False)
    with (project / "MLproject").open("a") as file:
        file.write(f"{environment}\n")
    for name in ("python_env.yaml", "conda.yaml"):
        (project / name).write_text("dependencies: []\n")
    arguments = ["--env-manager", "conda"] if program == "conda" else ["--env-manager", "virtualenv"]
    status, output, _ = mlflow_run(mlflow_server, project, home=tmp_path, arguments=arguments)
    assert status == 1
    cause = fault_in(output)
    assert f"{program}: not found on the training's PATH (" in cause
    assert advice in cause


MANAGER: dict[str, Any] = {"in_container": False, "conda": "conda", "has_environments": False}


@pytest.mark.parametrize(
    ("manager", "about", "missing"),
    [
        ("uv", {}, "uv"),
        ("uv", {"has_environments": True}, ""),
        ("virtualenv", {"has_environments": True}, ""),
        ("conda", {"has_environments": True}, "conda"),
        ("conda", {"conda": "/no/such/conda"}, "/no/such/conda"),
        ("local", {}, ""),
        ("local", {"in_container": True}, "docker"),
        ("one of tomorrow", {}, ""),
    ],
)
def test_only_what_the_training_needs_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manager: str, about: dict[str, Any], missing: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fault = hook("preflight").manager_fault(manager, **{**MANAGER, **about})
    assert fault.partition(":")[0] == missing


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "401 from 127.0.0.1: PRIVATE_INDEX_USER or its password is rejected"),
        (403, "403 from 127.0.0.1: PRIVATE_INDEX_USER or its password is rejected, or may not read PRIVATE_INDEX_URL"),
        (404, ""),  # it has no pip; an index need not
        (303, ""),  # it has no pip, and another index may
        (500, ""),
        (200, ""),
    ],
)
def test_a_login_that_the_private_index_refuses_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password s3cret\n")
    monkeypatch.setenv("ORCHESTRATOR_FILES", f"{tmp_path}/")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    handler = answering(status=status, body=b"s3cret is wrong")
    with served(handler) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple/")
        fault = hook("preflight").index_fault()
        monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:1/simple")
        assert hook("preflight").index_fault() == ""  # of a host that the file does not know
        monkeypatch.setenv("NETRC", "/etc/netrc")
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple/")
        assert hook("preflight").index_fault() == ""  # a file of the project's own
    assert fault == words
    assert len(handler.asked) == 1
    assert not words or "correct PRIVATE_INDEX_USER" in str(cause_of_failure([f"{BEGINS}{fault}"]))


@pytest.mark.parametrize(
    "hint",
    [
        "hint: An index (https://nexus.example.com/simple) returned a 403 Forbidden error. Check that the index URL is "
        "correct and the credentials are valid.",
        "hint: An index URL (https://nexus.example.com/simple) could not be queried due to a lack of valid "
        "authentication credentials (401 Unauthorized)",
    ],
)
def test_what_uv_says_of_a_login_leads_to_its_settings(hint: str) -> None:
    lines = [
        "error: No solution found when resolving dependencies",
        "  cause: Because greeting was not found in the package registry and you require greeting, we can conclude "
        "that your requirements are unsatisfiable.",
        "",
        hint,
    ]
    assert "PRIVATE_INDEX_PASSWORD" in str(cause_of_failure(lines))
