"""What one run is going to do, decided before any money is spent: build, project, commit and machine."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator import names
from orchestrator.errors import BuildUnusable, SettingsError
from orchestrator.pipeline.training.config import TrainingConfig
from orchestrator.remote.job import UNUSABLE, can_be_given
from orchestrator.resources.jenkins.answers import Build
from orchestrator.settings.source import PipelineSettings


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
        build_image: whether a docker_env project's image gets the commit; else it trains what it holds.
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
    build_image: bool = True

    @property
    def run_name(self) -> str:
        """Name of the MLflow run, for people."""
        return f"{self.pipeline} {self.partition}"

    def identity(self) -> dict[str, str]:
        """The MLflow tags by which an attempt knows the run of an earlier one: same build, same request."""
        parameters = sorted(self.parameters.items())  # as a digest: a tag holds 5000 bytes at most
        return {
            names.MlflowTag.PIPELINE: self.pipeline,
            names.MlflowTag.PARTITION: self.partition,
            names.MlflowTag.JENKINS_JOB: self.build.job,
            names.MlflowTag.JENKINS_BUILD: str(self.build.number),
            names.MlflowTag.JENKINS_TIMESTAMP: str(self.build.timestamp),
            names.MlflowTag.SOURCE_COMMIT: self.version,
            names.MlflowTag.ENTRY_POINT: self.entry_point,
            names.MlflowTag.PARAMETERS: hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16],
        }

    def tags(self, *, deployment: str, dagster_run: str, root_run: str) -> dict[str, str]:
        """All tags of the MLflow run; `mlflow.*` as `mlflow run` would set them without `--run-id`.

        Source: https://mlflow.org/docs/latest/ml/tracking/tracking-api/#system-tags
        """
        repository = self.project_uri.partition("#")[0]
        tags = {
            **self.identity(),
            names.MlflowTag.DEPLOYMENT: deployment,
            names.MlflowTag.DAGSTER_RUN: dagster_run,
            names.MlflowTag.DAGSTER_ROOT_RUN: root_run,
            names.MlflowTag.JENKINS_URL: self.build.url,
            names.MlflowTag.SOURCE_TYPE: "PROJECT",
            names.MlflowTag.SOURCE_NAME: self.project_uri,
            names.MlflowTag.SOURCE_REPOSITORY: repository,
            names.MlflowTag.GIT_REPOSITORY: repository,
            names.MlflowTag.BACKEND: "local",
        }
        if self.build.branch:
            tags[names.MlflowTag.SOURCE_BRANCH] = self.build.branch
        if not self.build_image:
            tags[names.MlflowTag.BUILD_IMAGE] = "false"
        return tags


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
            f"Jenkins does not tell which commit build {partition} of {build.job} tested: {build.doubt}"
            if build.doubt
            else f"Jenkins names no Git commit for build {partition} of {build.job}, so it is unknown what it tested; "
            "check the code out with the Git plugin (or `checkout scm`), or give `version` in the launchpad"
        )
    uri = project.uri or ""
    if not uri or uri.startswith("#"):
        if not build.repository:
            raise BuildUnusable(
                f"Build {partition} of {build.job} cannot be fetched by others: {build.doubt}"
                if build.doubt
                else f"Jenkins names no Git remote for build {partition} of {build.job}; "
                "set MLPROJECT_URI to the repository"
            )
        uri = build.repository + uri
    if re.match(r"(?i)\s*https?://[^/]*@", uri):
        raise SettingsError(
            "MLPROJECT_URI holds a login before its @, which the run's log, MLflow's tags and the instance's list of "
            "processes would show; take it out, and let Git log in on the instance: by a .netrc, a credential helper "
            "or an SSH key in the image (AMI_ID), or by GIT_CONFIG_COUNT, GIT_CONFIG_KEY_0 and GIT_CONFIG_VALUE_0, "
            "named in TRAINING_ENV"
        )
    if config.version:
        _require_version(config.version)
    _require_within_ceilings(config, settings)
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
        build_image=project.build_image,
    )
    _require_texts(plan, settings)
    if bad := [name for name in plan.parameters if not _is_parameter_name(name)]:
        raise SettingsError(
            f"MLPROJECT_PARAMETERS: {bad[0]!r} cannot be a parameter's name, for MLflow takes letters, digits, blanks "
            "and / _ - . : only, and no way such as a//b; rename it in MLproject"
        )
    return plan


def _is_parameter_name(name: str) -> bool:
    """Whether `mlflow run` and MLflow's server take it; source: `mlflow/utils/validation.py`, 2.x and 3.x."""
    is_path = posixpath.normpath(name) == name and name != "." and not name.startswith(("..", "/"))
    return is_path and bool(re.fullmatch(r"[/\w.\- :]{1,250}", name))


def _require_within_ceilings(config: TrainingConfig, settings: PipelineSettings) -> None:
    """Refuse what the launchpad may not ask for; here, because Dagster's own webserver lets everybody ask.

    Raises:
        SettingsError: another machine, or more time.
    """
    machine, most = settings.machine, settings.project.max_minutes
    allowed = dict.fromkeys((*machine.instance_types, *machine.types_allowed))
    if config.instance_type is not None and config.instance_type not in allowed:
        raise SettingsError(
            f"The launchpad's instance_type {config.instance_type} is none that may be used ({', '.join(allowed)}): "
            "choose one of these, or add it to INSTANCE_TYPES_ALLOWED"
        )
    if config.max_minutes is not None and config.max_minutes > most:
        raise SettingsError(
            f"The launchpad's max_minutes {config.max_minutes:g} is more than MAX_TRAINING_MINUTES={most:g}: lower it, "
            "or raise that setting"
        )


def _require_version(version: str) -> None:
    """Refuse what looks like a commit or branch, and is nothing that `mlflow run` can fetch from a remote.

    Raises:
        SettingsError: it is such a one.
    """
    if can_be_given(version) and (version.startswith("-") or not version.isprintable()):
        raise SettingsError(
            "Refused the version: it begins with - as options of a program do, or holds what cannot be printed; "
            "give a commit, a tag or a branch"
        )
    if re.fullmatch(r"[0-9a-fA-F]{4,39}", version):
        raise SettingsError(
            f"The version {version} looks like a shortened commit, and a Git server does not find a commit by a part "
            f"of its name; give the full SHA, which `git rev-parse {version}` prints"
        )
    prefix = next((prefix for prefix in ("refs/", "origin/", "remotes/") if version.startswith(prefix)), None)
    if prefix:
        raise SettingsError(
            f"The version {version} is a name inside of a clone, which `mlflow run` does not check out; give the "
            "branch's or tag's own name"
        )


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
