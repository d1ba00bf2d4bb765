"""What one run is going to do, decided before any money is spent: build, project, commit and machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import dagster as dg
from pydantic import Field

from orchestrator.errors import BuildUnusable, SettingsError
from orchestrator.remote.job import UNUSABLE, can_be_given, is_variable
from orchestrator.resources.jenkins.answers import Build
from orchestrator.settings.groups import LONGEST_MINUTES
from orchestrator.settings.source import PipelineSettings, Settings


class TrainingConfig(dg.Config):
    """What the launchpad can change for one run; everything left out is as the settings say."""

    entry_point: str | None = Field(default=None, description="entry point, instead of MLPROJECT_ENTRY_POINT")
    parameters: dict[str, str] = Field(
        default={}, description="parameters of the entry point, on top of MLPROJECT_PARAMETERS"
    )
    version: str | None = Field(
        default=None, description="Git commit, tag or branch, instead of the build's own commit"
    )
    instance_type: str | None = Field(default=None, description="EC2 instance type, instead of INSTANCE_TYPE")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
        description="deadline in minutes, instead of MAX_TRAINING_MINUTES",
    )


@dataclass(frozen=True)
class Plan:
    """One build's training, fully decided.

    Attributes:
        pipeline: name of the pipeline.
        partition: the build's partition key.
        build: what Jenkins said of the build.
        project_uri: what `mlflow run` is given, `#subdir` included.
        version: the Git commit (or what the launchpad says instead).
        entry_point: entry point of the project.
        parameters: its parameters.
        instance_type: the launchpad's choice; None: the settings' list.
        max_minutes: how long the instance may be used, from its launch on.
    """

    pipeline: str
    partition: str
    build: Build
    project_uri: str
    version: str
    entry_point: str
    parameters: Mapping[str, str] = field(hash=False)
    instance_type: str | None
    max_minutes: float

    @property
    def run_name(self) -> str:
        """Name of the MLflow run, for people."""
        return f"{self.pipeline} {self.partition}"

    def identity(self) -> dict[str, str]:
        """The MLflow tags by which an attempt knows the run of an earlier one: same build, same request."""
        parameters = sorted(self.parameters.items())  # as a digest: a tag holds 5000 bytes at most
        return {
            "orchestrator.pipeline": self.pipeline,
            "orchestrator.partition": self.partition,
            "jenkins.job": self.build.job,
            "jenkins.build": str(self.build.number),
            "jenkins.timestamp": str(self.build.timestamp),
            "mlflow.source.git.commit": self.version,
            "mlflow.project.entryPoint": self.entry_point,
            "orchestrator.parameters": hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16],
        }

    def tags(self, *, deployment: str, dagster_run: str, root_run: str) -> dict[str, str]:
        """All tags of the MLflow run; `mlflow.*` as `mlflow run` would set them without `--run-id`.

        Source: https://mlflow.org/docs/latest/ml/tracking/tracking-api/#system-tags
        """
        repository = self.project_uri.partition("#")[0]
        tags = {
            **self.identity(),
            "orchestrator.deployment": deployment,
            "dagster_run_id": dagster_run,
            "dagster_root_run_id": root_run,
            "jenkins.url": self.build.url,
            "mlflow.source.type": "PROJECT",
            "mlflow.source.name": self.project_uri,
            "mlflow.source.git.repoURL": repository,
            "mlflow.gitRepoURL": repository,
            "mlflow.project.backend": "local",
        }
        if self.build.branch:
            tags["mlflow.source.git.branch"] = self.build.branch
        return tags

    def command(self, settings: PipelineSettings, *, mlflow_run: str) -> list[str]:
        """The argument list of `mlflow run`; no shell ever reads it.

        Source: https://mlflow.org/docs/latest/api_reference/cli.html#mlflow-run
        """
        project = settings.project
        command = [project.mlflow_command, "run", self.project_uri, "--version", self.version]
        command += ["--entry-point", self.entry_point, "--run-id", mlflow_run]
        command += ["--experiment-id", settings.mlflow.experiment_id]
        if project.env_manager:
            command += ["--env-manager", project.env_manager]
        if project.build_image:
            command.append("--build-image")
        for name, value in project.docker_args.items():
            command += ["--docker-args", f"{name}={value}" if value else name]
        for name, value in self.parameters.items():
            command += ["--param-list", f"{name}={value}"]
        return command


def make_plan(
    *,
    pipeline: str,
    partition: str,
    build: Build,
    settings: PipelineSettings,
    config: TrainingConfig,
) -> Plan:
    """Decide what to do for one build.

    Raises:
        BuildUnusable: the build lacks what a training needs.
        SettingsError: a setting cannot work together with this build.
    """
    project = settings.project
    version = config.version or build.commit
    if not version:
        raise BuildUnusable(
            f"Jenkins names no Git commit for build {partition} of {build.job}, so it is unknown what it tested; "
            f"check the code out with the Git plugin (or `checkout scm`), or give `version` in the launchpad"
        )
    uri = project.uri or ""
    if not uri or uri.startswith("#"):
        if not build.repository:
            raise BuildUnusable(
                f"Jenkins names no Git remote for build {partition} of {build.job}; set MLPROJECT_URI to the repository"
            )
        uri = build.repository + uri
    if re.match(r"(?i)\s*https?://[^/]*@", uri):
        raise SettingsError(
            "MLPROJECT_URI holds a login before its @, which the run's log, MLflow's tags and the instance's list of "
            "processes would show; take it out, and let Git log in on the instance: by a .netrc, a credential helper "
            "or an SSH key in the image (AMI_ID), or by GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0 and GIT_CONFIG_VALUE_0, "
            "named in TRAINING_ENV"
        )
    if bad := [name for name in (*project.parameters, *config.parameters) if not name or "=" in name]:
        raise SettingsError(f"MLPROJECT_PARAMETERS: {bad[0]!r} cannot be a parameter's name; rename it in MLproject")
    plan = Plan(
        pipeline=pipeline,
        partition=partition,
        build=build,
        project_uri=uri,
        version=version,
        entry_point=config.entry_point or project.entry_point,
        parameters={**project.parameters, **config.parameters},
        instance_type=config.instance_type,
        max_minutes=config.max_minutes or project.max_minutes,
    )
    _require_texts(plan, settings)
    return plan


def _require_texts(plan: Plan, settings: PipelineSettings) -> None:
    """Refuse, while it costs nothing, what no command line can hold."""
    project = settings.project
    texts = {
        "MLPROJECT_URI": plan.project_uri,
        "the version": plan.version,
        "the entry point (MLPROJECT_ENTRY_POINT)": plan.entry_point,
        "MLFLOW_COMMAND": project.mlflow_command,
        "MLFLOW_EXPERIMENT_ID": settings.mlflow.experiment_id,
        "MLPROJECT_DOCKER_ARGS": "".join((*project.docker_args, *project.docker_args.values())),
        **{f"the parameter {name}": name + value for name, value in plan.parameters.items()},
    }
    if bad := [what for what, text in texts.items() if not can_be_given(text)]:
        # As repr() has it: the name itself may be what cannot be printed.
        raise SettingsError(f"{repr(bad[0])[1:-1]} holds {UNUSABLE}; correct it in the settings or in the launchpad")


def training_environment(settings: Settings, read: PipelineSettings) -> dict[str, str]:
    """The variables that the training process gets: where MLflow is, and what TRAINING_ENV names.

    Raises:
        SettingsError: TRAINING_ENV names a variable that is not set, or one that no process can be given.
    """
    names: Sequence[str] = read.project.training_env
    if bad := [name for name in names if not is_variable(name)]:
        raise SettingsError(
            f"TRAINING_ENV names {bad[0]!r}, which cannot be the name of a variable: those have letters, digits and "
            "underscores only, and begin with no digit"
        )
    values = {name: settings.lookup(name) for name in names}
    if missing := [name for name, value in values.items() if value is None]:
        raise SettingsError(
            f"TRAINING_ENV names {', '.join(missing)}, which the environment does not hold; set it or take it out"
        )
    mlflow = read.mlflow
    environment = {
        "MLFLOW_TRACKING_URI": mlflow.uri_on_instance or mlflow.tracking_uri,
        "MLFLOW_TRACKING_USERNAME": mlflow.username,
        "MLFLOW_TRACKING_PASSWORD": mlflow.password.get_secret_value() if mlflow.password else None,
        "MLFLOW_TRACKING_TOKEN": mlflow.token.get_secret_value() if mlflow.token else None,
        "PYTHONUNBUFFERED": "1",  # else Python holds a piped log back, and nothing is live
        **values,
    }
    given = {name: value for name, value in environment.items() if value is not None}
    if bad := [name for name, value in given.items() if not can_be_given(value)]:
        raise SettingsError(f"{bad[0]} holds {UNUSABLE}; set it anew")
    return given


def secrets_in(environment: Mapping[str, str], read: PipelineSettings) -> list[str]:
    """What must not be shown: all that TRAINING_ENV hands over, MLflow's credentials, passwords in addresses.

    Args:
        environment: of the training.
        read: the settings that it was made of.
    """
    names = {*read.project.training_env, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
    secrets = [value for name, value in environment.items() if name in names]
    for address in (*environment.values(), read.mlflow.tracking_uri):
        # urlsplit() would refuse some addresses, and a refusal masks nothing.
        if login := re.match(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@:]*:([^/?#]*)@", address):
            secrets += [login[1], unquote(login[1])]  # MLflow prints the one, other programs the other
    return secrets
