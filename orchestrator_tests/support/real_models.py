"""Trained models of a pipeline on a real MLflow server; for tests of the champion and of its commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from orchestrator.names import MlflowTag
from orchestrator.pipeline.models.declared import ChampionRule, Goal
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.logged_models import FILES, finished_run, log_model


@dataclass
class RealModels:
    """Trained models of a pipeline on a real server, and a registered model of their own."""

    server: MlflowServer
    rule: ChampionRule

    @classmethod
    def on(cls, server: MlflowServer) -> RealModels:
        """None yet, and a registered model that nobody else has."""
        name = f"churn-{uuid4().hex[:8]}"
        return cls(server, ChampionRule(pipeline="churn", metric="accuracy", goal=Goal.MAXIMIZE, model=name))

    def train(
        self,
        accuracy: float,
        *,
        build: int,
        model: bool = True,
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, str] = FILES,
    ) -> str:
        """A run that ended well, with a model of these files; its ID."""
        experiment = self.server.experiment("champion tests")
        run_tags = {
            MlflowTag.PIPELINE: self.rule.pipeline,
            MlflowTag.PARTITION: str(build),
            MlflowTag.JENKINS_BUILD: str(build),
            MlflowTag.JENKINS_TIMESTAMP: str(build),
            MlflowTag.SOURCE_COMMIT: "c0ffee",
            MlflowTag.DAGSTER_RUN: f"run-{build}",
            MlflowTag.CHECKS: "passed",
            **(tags or {}),
        }
        run_id = finished_run(self.server.url, experiment, metrics={"accuracy": accuracy}, tags=run_tags)
        if model:
            log_model(self.server.url, run_id, files=files)
        return run_id
