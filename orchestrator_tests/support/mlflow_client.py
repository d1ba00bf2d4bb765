"""Our MLflow client, and a plain one for what ours does not do; for tests of resources/mlflow and of the janitor."""

from __future__ import annotations

from typing import Any

import requests

from orchestrator.resources.mlflow.client import Mlflow
from orchestrator.settings.groups import MlflowSettings


def client(uri: str, *, patience_seconds: float = 5, **fields: Any) -> Mlflow:
    """Our client; `fields` are other fields of the settings."""
    read = MlflowSettings(tracking_uri=uri, experiment_id="1", **fields)
    return Mlflow(read, patience_seconds=patience_seconds)


def post(uri: str, endpoint: str, **fields: Any) -> Any:
    """Ask the server for something directly."""
    answer = requests.post(f"{uri}/api/2.0/mlflow/{endpoint}", json=fields, timeout=30)
    answer.raise_for_status()
    return answer.json()
