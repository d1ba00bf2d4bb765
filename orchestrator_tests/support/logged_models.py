"""Runs with models, logged by plain REST as MLflow 3's and MLflow 2's clients do; without their seconds of import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit
from uuid import uuid4

import requests

from orchestrator_tests.support.mlflow_client import post

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.skops, python_version: 3.11.7}
  sklearn: {pickled_model: model.skops, serialization_format: skops}
mlflow_version: 3.17.2
signature: {inputs: '[{"type": "double", "name": "x"}]', outputs: '[{"type": "double"}]', params: null}
"""
FILES = {"MLmodel": MLMODEL, "model.skops": "PK", "requirements.txt": "scikit-learn==1.9.1"}

TINY = {
    "MLmodel": """\
flavors:
  python_function: {loader_module: tiny_model, code: code, python_version: 3.11.7}
mlflow_version: 3.17.2
saved_input_example_info: {artifact_path: input_example.json, type: dataframe, pandas_orient: split}
""",
    "input_example.json": '{"columns": ["x"], "data": [[1.0], [2.0]]}',
    "code/tiny_model.py": """\
class Doubler:
    def predict(self, given):
        return given["x"] * 2


def _load_pyfunc(path):
    return Doubler()
""",
}
"""A model that MLflow loads without any library besides its own."""


def finished_run(
    uri: str, experiment: str, *, metrics: Mapping[str, float | str], tags: Mapping[str, str] | None = None
) -> str:
    """A run that ended well; its ID."""
    run_id: str = post(uri, "runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
    values = [{"key": key, "value": value, "timestamp": 1, "step": 0} for key, value in metrics.items()]
    pairs = [{"key": key, "value": value} for key, value in (tags or {}).items()]
    post(uri, "runs/log-batch", run_id=run_id, metrics=values, tags=pairs)
    post(uri, "runs/update", run_id=run_id, status="FINISHED", end_time=2)
    return run_id


def log_model(uri: str, run_id: str, *, files: Mapping[str, str] = FILES, name: str = "model", step: int = 0) -> str:
    """Log a model as MLflow 3 does; its ID."""
    run = requests.get(f"{uri}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]
    model = post(uri, "logged-models", experiment_id=run["info"]["experiment_id"], name=name, source_run_id=run_id)
    info = model["model"]["info"]
    model_id: str = info["model_id"]
    _upload(uri, info["artifact_uri"], files)
    finalized = {"model_id": model_id, "status": "LOGGED_MODEL_READY"}
    requests.patch(f"{uri}/api/2.0/mlflow/logged-models/{model_id}", json=finalized, timeout=30).raise_for_status()
    post(uri, "runs/outputs", run_id=run_id, models=[{"model_id": model_id, "step": step}])
    return model_id


def log_model_2(uri: str, run_id: str, *, files: Mapping[str, str] = FILES, path: str = "model") -> None:
    """Log a model as MLflow 2 does."""
    run = requests.get(f"{uri}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]
    _upload(uri, f"{run['info']['artifact_uri']}/{path}", files)
    history = json.dumps([{"run_id": run_id, "artifact_path": path, "model_uuid": uuid4().hex}])
    post(uri, "runs/set-tag", run_id=run_id, key="mlflow.log-model.history", value=history)


def read_dataset(uri: str, run_id: str, *, digest: str, context: str = "eval", name: str = "holdout") -> None:
    """Let a run say that it has read a dataset."""
    dataset = {"name": name, "digest": digest, "source_type": "code", "source": "{}"}
    tags = [{"key": "mlflow.data.context", "value": context}]
    post(uri, "runs/log-inputs", run_id=run_id, datasets=[{"tags": tags, "dataset": dataset}])


def _upload(uri: str, place: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        url = f"{uri}/api/2.0/mlflow-artifacts/artifacts{urlsplit(place).path}/{name}"
        requests.put(url, data=text.encode(), timeout=30).raise_for_status()
