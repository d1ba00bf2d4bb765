"""Our MLflow client, and a plain one for what ours does not do; for tests of resources/mlflow and of the janitor."""

from __future__ import annotations

from typing import Any

import requests

from orchestrator.resources.mlflow import Mlflow
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import MlflowSettings

SHORT = RetryPolicy(total_seconds=5, connect_seconds=5, answer_seconds=10, first_pause_seconds=0.1)


def client(uri: str, *, policy: RetryPolicy = SHORT, **fields: Any) -> Mlflow:
    """Our client; `fields` are other fields of the settings."""
    read = MlflowSettings(tracking_uri=uri, experiment_id="1", **fields)
    return Mlflow(read, policy=policy)


def post(uri: str, endpoint: str, **fields: Any) -> Any:
    """Ask the server for something directly."""
    answer = requests.post(f"{uri}/api/2.0/mlflow/{endpoint}", json=fields, timeout=30)
    answer.raise_for_status()
    return answer.json()
