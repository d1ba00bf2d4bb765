"""The command line of a training."""

from __future__ import annotations

from orchestrator.pipeline.training.plan import Plan
from orchestrator.settings.source import PipelineSettings


def mlflow_run_command(plan: Plan, settings: PipelineSettings, *, mlflow_run: str) -> list[str]:
    """The argument list of `mlflow run`; no shell ever reads it.

    Source: https://mlflow.org/docs/latest/api_reference/cli.html#mlflow-run
    """
    project = settings.project
    command = [project.mlflow_command, "run", plan.project_uri, "--version", plan.version]
    command += ["--entry-point", plan.entry_point, "--run-id", mlflow_run]
    command += ["--experiment-id", settings.mlflow.experiment_id]
    if project.env_manager:
        command += ["--env-manager", project.env_manager]
    if project.build_image:
        command.append("--build-image")
    for name, value in project.docker_args.items():
        command += ["--docker-args", f"{name}={value}" if value else name]
    for name, value in plan.parameters.items():
        command += ["--param-list", f"{name}={value}"]
    return command
