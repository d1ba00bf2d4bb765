"""MLflow: runs found by tags, created once, finished, read."""

from orchestrator.resources.mlflow.answers import Experiment, FinalStatus, MetricPoint, ModelVersion, Run, RunStatus
from orchestrator.resources.mlflow.client import Mlflow, MlflowResource

__all__ = ["Experiment", "FinalStatus", "MetricPoint", "Mlflow", "MlflowResource", "ModelVersion", "Run", "RunStatus"]
