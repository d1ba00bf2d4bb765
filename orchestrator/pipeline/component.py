"""TrainingPipeline: the Dagster component that turns one defs.yaml into a pipeline."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
from pydantic import Field

from orchestrator.pipeline.builds.sensor import jenkins_build_spec, jenkins_sensor
from orchestrator.pipeline.training.asset import trained_model
from orchestrator.pipeline.training.run_history import job_name
from orchestrator.settings.source import Settings


class TrainingPipeline(dg.Component, dg.Model, dg.Resolvable):
    """Every green build of one Jenkins job becomes a trained model."""

    name: str = Field(
        default="training",
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="prefix of this pipeline's assets, job, sensor and partitions",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that differ from the environment, by the names of .env.example; no secrets",
    )
    settings_from_env: dict[str, str] = Field(
        default_factory=dict,
        description="setting: name of the environment variable to read it from, for this pipeline; for secrets too",
    )

    def pipeline_settings(self) -> Settings:
        """The environment, and what this defs.yaml says instead."""
        return Settings(
            pipeline=self.name,
            values={name: _text(value) for name, value in self.settings.items()},
            from_env=self.settings_from_env,
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, the job and the sensor of this pipeline."""
        settings = self.pipeline_settings()
        model = trained_model(self.name, settings)
        job = dg.define_asset_job(
            job_name(self.name),
            selection=[model],
            description=f"Trains one green Jenkins build of {self.name} on an EC2 instance of its own.",
            executor_def=dg.in_process_executor,
            # A dead worker is tried again; a training that failed is not. dagster.yaml says the same for
            # runs that are not of this job.
            tags={"dagster/retry_strategy": "ALL_STEPS", "dagster/retry_on_asset_or_op_failure": "false"},
        )
        return dg.Definitions(
            assets=[jenkins_build_spec(self.name), model],
            jobs=[job],
            sensors=[jenkins_sensor(self.name, settings, job)],
        )


def _text(value: object) -> str:
    """A YAML value as the environment would hold it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value)
