"""A model's files come whole, or not at all; against a real MLflow server, one that breaks off, and one that lies."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from orchestrator.errors import MlflowError, MlflowNotFound, MlflowUnavailable
from orchestrator.resources import retry
from orchestrator.resources.mlflow import Mlflow
from orchestrator.resources.mlflow.registry import LoggedModel
from orchestrator.resources.retry import RetryPolicy
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import HUNG_UP, FaultyProxy, ProxyFault
from orchestrator_tests.support.logged_models import FILES, finished_run, log_model, log_model_2
from orchestrator_tests.support.mlflow_client import client, post

DEEP = {**FILES, "data/a/weights.bin": "\x00\x01" * 40_000, "serving_input_example.json": "{}"}


@pytest.fixture(scope="module")
def run_id(mlflow_server: MlflowServer) -> str:
    return finished_run(mlflow_server.url, mlflow_server.experiment("model files"), metrics={"accuracy": 0.9})


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MlflowServer) -> Iterator[Mlflow]:
    with client(mlflow_server.url) as connected:
        yield connected


@contextmanager
def stored(paths: Sequence[str], *, size: int, body: bytes) -> Iterator[str]:
    """A server that names these files of any model, and gives this content for each; its address."""
    listing = json.dumps({"files": [{"path": path, "is_dir": False, "file_size": size} for path in paths]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = listing if "directories" in self.path else body
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetched(mlflow: Mlflow, model: LoggedModel, folder: Path) -> dict[str, str]:
    mlflow.model_files.fetch(model, folder)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def registered(mlflow: Mlflow, run_id: str) -> tuple[str, str]:
    """A new registered model with a version made of the run's model: name, version."""
    name = f"churn-{uuid4().hex[:8]}"
    mlflow.registry.require_registered(name)
    model = mlflow.registry.model_of(mlflow.run(run_id))
    assert model is not None
    version = mlflow.registry.register(name, model, tags={})
    mlflow.registry.set_alias(version, "champion")
    return name, version.version


def test_a_model_of_mlflow_3_by_each_address(
    mlflow: Mlflow, mlflow_server: MlflowServer, run_id: str, tmp_path: Path
) -> None:
    model_id = log_model(mlflow_server.url, run_id, files=DEEP)
    name, version = registered(mlflow, run_id)
    addresses = (
        f"models:/{name}/{version}",
        f"models:/{name}@champion",
        f"models:/{model_id}",
        f"runs:/{run_id}/model",
    )
    for number, uri in enumerate(addresses):
        found = mlflow.model_files.find(uri)
        assert found.model.id == model_id
        assert found.run is not None
        assert found.run.id == run_id
        assert (found.version is not None) == (number < 2)
        assert fetched(mlflow, found.model, tmp_path / str(number)) == DEEP


def test_a_model_of_mlflow_2_by_each_address(mlflow: Mlflow, mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id = finished_run(mlflow_server.url, mlflow_server.experiment("model files"), metrics={})
    log_model_2(mlflow_server.url, run_id, files=DEEP, path="my model")
    name, version = registered(mlflow, run_id)
    for number, uri in enumerate((f"models:/{name}/{version}", f"runs:/{run_id}/my model")):
        assert fetched(mlflow, mlflow.model_files.find(uri).model, tmp_path / str(number)) == DEEP


@pytest.mark.parametrize(
    "uri", ["models:/nobody/1", "models:/nobody@champion", "models:/m-0123456789", "runs:/0123456789/model"]
)
def test_what_is_not_there_is_not_found(mlflow: Mlflow, uri: str, tmp_path: Path) -> None:
    with pytest.raises(MlflowNotFound):
        fetched(mlflow, mlflow.model_files.find(uri).model, tmp_path)


@pytest.mark.parametrize("uri", ["", "churn", "models:/churn", "models:/a/b/c", "s3://bucket/model", "models:/../../1"])
def test_an_address_of_another_form_is_refused(mlflow: Mlflow, uri: str) -> None:
    with pytest.raises(MlflowError, match="write models:/NAME/VERSION"):
        mlflow.model_files.find(uri)


def test_artifacts_without_an_mlmodel_are_no_model(
    mlflow: Mlflow, mlflow_server: MlflowServer, run_id: str, tmp_path: Path
) -> None:
    log_model_2(mlflow_server.url, run_id, files={"plot.png": "x"}, path="plots")
    with pytest.raises(MlflowNotFound, match="no file MLmodel"):
        mlflow.model_files.fetch(LoggedModel(run_id=run_id, id="", name="plots", source="runs:/x/plots"), tmp_path)


def test_a_version_made_from_anywhere_is_refused(mlflow: Mlflow) -> None:
    name = f"churn-{uuid4().hex[:8]}"
    mlflow.registry.require_registered(name)
    post(mlflow.uri, "model-versions/create", name=name, source="s3://somewhere/else")
    with pytest.raises(MlflowNotFound, match="is made from"):
        mlflow.model_files.find(f"models:/{name}/1")


class TestAServerThatBreaksOff:
    QUICK = RetryPolicy(
        total_seconds=20, connect_seconds=5, answer_seconds=20, first_pause_seconds=0.05, longest_pause_seconds=0.1
    )

    def test_a_file_is_fetched_again_from_its_start(
        self, mlflow_server: MlflowServer, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retry, "MLFLOW_MODEL", self.QUICK)
        model_id = log_model(mlflow_server.url, run_id, files=DEEP)
        with FaultyProxy(mlflow_server.url) as proxy, client(proxy.url) as mlflow:
            model = mlflow.model_files.find(f"models:/{model_id}").model
            for fault in (HUNG_UP, ProxyFault(status=503)):
                with proxy.faulty(fault, applies=lambda request: "artifacts/files" in request.path, times=2) as hits:
                    assert fetched(mlflow, model, tmp_path / str(fault.status)) == DEEP
                assert hits.count == 2

    @pytest.mark.parametrize("body", [b"only a part", b"far more than was said to be there" * 10])
    def test_a_file_of_another_size_is_not_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
    ) -> None:
        monkeypatch.setattr(retry, "MLFLOW_MODEL", self.QUICK.with_total(1))
        with stored(("MLmodel",), size=30, body=body) as url, client(url) as mlflow:
            model = LoggedModel(run_id="r", id="m-1", name="model", source="models:/m-1")
            with pytest.raises(MlflowUnavailable, match="MLmodel has 30 bytes"):
                mlflow.model_files.fetch(model, tmp_path)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../evil", "a\\b", "a\nb", "data/./x"])
def test_names_that_lead_elsewhere_are_never_written(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with stored(("MLmodel", path), size=2, body=b"{}") as url, client(url) as mlflow:
        model = LoggedModel(run_id="r", id="m-1", name="model", source="models:/m-1")
        with contextlib.suppress(MlflowError):  # what begins with a slash or goes up is not even listed
            mlflow.model_files.fetch(model, folder)
    assert {path.name for path in tmp_path.rglob("*")} <= {"model", "MLmodel"}
