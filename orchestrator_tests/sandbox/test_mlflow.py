"""The sandbox's MLflow server is a real one, and leaves nothing behind."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from orchestrator.errors import SandboxError
from orchestrator_sandbox.mlflow import MlflowServer


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_its_settings_lead_to_an_experiment(mlflow_server: MlflowServer) -> None:
    env = mlflow_server.env()
    assert set(env) == {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"}
    answer = requests.get(
        f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get",
        params={"experiment_id": env["MLFLOW_EXPERIMENT_ID"]},
        timeout=30,
    )
    assert answer.json()["experiment"]["lifecycle_stage"] == "active"


def test_an_experiment_is_created_once(mlflow_server: MlflowServer) -> None:
    first = mlflow_server.experiment("created once")
    assert mlflow_server.experiment("created once") == first
    assert mlflow_server.experiment("another") != first


def test_a_browser_can_use_it(mlflow_server: MlflowServer) -> None:
    page = requests.get(mlflow_server.url, timeout=30)
    assert 'id="root"' in page.text
    search = requests.post(
        f"{mlflow_server.url}/ajax-api/2.0/mlflow/experiments/search",
        json={"max_results": 5},
        headers={"Origin": mlflow_server.url},
        timeout=30,
    )
    assert search.json()["experiments"]


def test_it_keeps_artifacts_that_come_over_http(mlflow_server: MlflowServer) -> None:
    url = f"{mlflow_server.url}/api/2.0/mlflow-artifacts/artifacts/7/model.txt"
    requests.put(url, data=b"weights", timeout=30).raise_for_status()
    assert requests.get(url, timeout=30).content == b"weights"


def test_a_server_in_the_directory_of_an_earlier_one_goes_on_with_its_data_and_ends_without_a_trace(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    experiment = mlflow_server.experiment("kept")
    databases = [directory / "mlflow.db" for directory in (mlflow_server.directory, tmp_path)]
    with closing(sqlite3.connect(databases[0])) as earlier, closing(sqlite3.connect(databases[1])) as copy:
        earlier.backup(copy)
    before = descendants()
    with MlflowServer(tmp_path) as server:
        assert server.experiment("kept") == experiment
        assert descendants() > before
        port = urlsplit(server.url).port
    server.close()
    assert descendants() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port or 0), timeout=5)


def test_a_server_that_cannot_start_shows_the_end_of_its_log_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    before = descendants()
    with pytest.raises(SandboxError, match=r"(?s)the MLflow server ended .* file is not a database"):
        MlflowServer(tmp_path).__enter__()
    assert descendants() == before


@pytest.mark.parametrize("path", ["ajax-api/2.0/mlflow/experiments/create", "api/2.0/mlflow/experiments/create"])
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://evil.example:{port}", "http://192.168.1.9"])
def test_no_foreign_page_changes_anything(mlflow_server: MlflowServer, path: str, kind: str, origin: str) -> None:
    headers = {"Content-Type": kind, "Origin": origin.format(port=mlflow_server.port)}
    body = '{"name": "planted"}'
    answer = requests.post(f"{mlflow_server.url}/{path}", data=body, headers=headers, timeout=30)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    found = requests.get(
        f"{mlflow_server.url}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "planted"}, timeout=30
    )
    assert found.status_code == 404


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "192.168.1.9",
        "10.evil.example",
    ],
)
def test_another_name_leads_nowhere(mlflow_server: MlflowServer, host: str) -> None:
    """A page whose name was made to lead here (DNS rebinding) would read and write everything."""
    name = host.format(port=mlflow_server.port)
    for path in ("", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/graphql"):
        assert requests.get(f"{mlflow_server.url}{path}", headers={"Host": name}, timeout=30).status_code == 403


def test_no_page_frames_it_or_reads_it(mlflow_server: MlflowServer) -> None:
    page = requests.get(mlflow_server.url, headers={"Origin": "https://evil.example"}, timeout=30)
    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert "access-control-allow-origin" not in page.headers
