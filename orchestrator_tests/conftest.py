"""What the tests share: a real MLflow server, which takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.sandbox.mlflow import MlflowServer


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
