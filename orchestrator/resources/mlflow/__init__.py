"""MLflow: runs found by tags, created once, finished, read; its model registry."""

from orchestrator.resources.mlflow.answers import (
    Dataset,
    Experiment,
    FinalStatus,
    MetricPoint,
    ModelVersion,
    RegisteredModel,
    Run,
    RunStatus,
)
from orchestrator.resources.mlflow.client import Mlflow, MlflowResource
from orchestrator.resources.mlflow.model_files import ModelFiles, StoredModel
from orchestrator.resources.mlflow.registry import LoggedModel, ModelRegistry

__all__ = [
    "Dataset",
    "Experiment",
    "FinalStatus",
    "LoggedModel",
    "MetricPoint",
    "Mlflow",
    "MlflowResource",
    "ModelFiles",
    "ModelRegistry",
    "ModelVersion",
    "RegisteredModel",
    "Run",
    "RunStatus",
    "StoredModel",
]
