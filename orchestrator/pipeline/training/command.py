"""The command line of a training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from orchestrator.names import CONTAINER_LABEL
from orchestrator.pipeline.training.environment import DOCKER_ENV
from orchestrator.pipeline.training.plan import Plan
from orchestrator.remote.job import Argument, InDirectory, JobFile
from orchestrator.settings.source import PipelineSettings

_log = logging.getLogger(__name__)


def mlflow_run_command(
    plan: Plan, settings: PipelineSettings, *, mlflow_run: str, files: Sequence[JobFile] = ()
) -> list[Argument]:
    """The argument list of `mlflow run`; no shell reads it, but for the arguments of `docker run`.

    Source: https://mlflow.org/docs/latest/api_reference/cli.html#mlflow-run

    Args:
        plan: what to train.
        settings: of the pipeline.
        mlflow_run: what the training fills.
        files: what it finds in its directory.
    """
    project = settings.project
    command: list[Argument] = [project.mlflow_command, "run", "--version", plan.version]
    command += ["--entry-point", plan.entry_point, "--run-id", mlflow_run]
    command += ["--experiment-id", settings.mlflow.experiment_id]
    if project.env_manager:
        command += ["--env-manager", project.env_manager]
    if plan.build_image:
        command.append("--build-image")
    for argument in docker_arguments(project.docker_args, mlflow_run=mlflow_run, files=files):
        command += ["--docker-args", argument]
    for name, value in plan.parameters.items():
        command += ["--param-list", f"{name}={value}"]
    return [*command, "--", plan.project_uri]


def docker_arguments(given: Mapping[str, str], *, mlflow_run: str, files: Sequence[JobFile]) -> list[Argument]:
    """The values of `--docker-args`, which MLflow ignores for projects without a docker_env.

    Args:
        given: MLPROJECT_DOCKER_ARGS; `true` makes a flag, and `false` leaves it out.
        mlflow_run: labels the container, so that it is found when the training is to be ended.
        files: of the training; one that a variable leads to is at the same place in the container.
    """
    ours: list[tuple[str, tuple[str, ...]]] = [("label", (f"{CONTAINER_LABEL}={mlflow_run}",))]
    if any(file.name == DOCKER_ENV for file in files):
        ours.append(("env-file", ("", DOCKER_ENV)))
    for file in files:
        if file.variable:
            ours.append(("mount", ("type=bind,source=", f"{file.name},target=", f"{file.name},readonly")))
    theirs = [_name_and_value(name, value) for name, value in given.items()]
    if "env-file" in dict(theirs):
        _log.info("MLPROJECT_DOCKER_ARGS has an env-file, which Docker reads after ours: its values prevail")
    # MLflow takes each name once, and has bash read the result: what is given twice goes into one value.
    values: dict[str, tuple[str, ...]] = {}
    for name, parts in (*ours, *((name, (value,)) for name, value in theirs)):
        if name not in values:
            values[name] = parts
        elif parts not in (("",), ("false",)):
            *before, last = values[name]
            values[name] = (*before, f"{last} {'-' if len(name) == 1 else '--'}{name} {parts[0]}", *parts[1:])
    values.setdefault("init", ("true",))
    return [_argument(name, parts) for name, parts in values.items() if parts != ("false",)]


def _name_and_value(name: str, value: str) -> tuple[str, str]:
    """As MLflow reads it: a name may hold a `=` and the value behind it."""
    name, _, rest = (f"{name}={value}" if value else name).partition("=")
    return name, rest


def _argument(name: str, parts: tuple[str, ...]) -> Argument:
    if parts in (("true",), ("",)):
        return name
    first, *rest = parts
    return InDirectory((f"{name}={first}", *rest)) if rest else f"{name}={first}"
