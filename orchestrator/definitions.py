"""The one entry point: every pipeline under defs/, and the resources that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from orchestrator import log_format, names
from orchestrator.dagster_instance import format_console_of_runs
from orchestrator.janitor.sensor import janitor_sensor, janitor_spec
from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder
from orchestrator.pipeline.training.run_scope import TrainingAttempts
from orchestrator.pipeline.watched import WatchedPipelines, pipelines_of_this_process
from orchestrator.resources.ec2.client import Ec2Resource
from orchestrator.resources.jenkins.client import JenkinsResource
from orchestrator.resources.mlflow.client import MlflowResource
from orchestrator.resources.ssh.connection import SshResource
from orchestrator.settings.dagster_yaml import without_effect
from orchestrator.settings.groups import InstallationSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import hand_aws_to_boto3, lookup

_log = logging.getLogger(__name__)


def shared(pipelines: Callable[[], WatchedPipelines] = pipelines_of_this_process) -> dg.Definitions:
    """What all pipelines of a code location share: the resources and the janitor. Add it once.

    In somebody else's Dagster project:

        defs = dg.Definitions.merge(dg.load_from_defs_folder(path_within_project=Path(__file__)), shared())

    It sets no executor, because that would be the other assets' too, and hands AWS_* of `.env` to boto3.

    Args:
        pipelines: which ones the janitor watches, asked at each tick; default: those that this process has built.
    """
    hand_aws_to_boto3()
    _use_log_format()
    _warn_of_settings_without_effect()
    return dg.Definitions(
        assets=[janitor_spec],
        sensors=[janitor_sensor(pipelines)],
        resources={
            names.ResourceKey.JENKINS: JenkinsResource(),
            names.ResourceKey.EC2: Ec2Resource(),
            names.ResourceKey.SSH: SshResource(),
            names.ResourceKey.MLFLOW: MlflowResource(),
            names.ResourceKey.ATTEMPTS: TrainingAttempts(),
        },
    )


def _use_log_format() -> None:
    """Write logs as LOG_FORMAT says: this process is a code server, or a run's worker."""
    if SettingsSource().read(InstallationSettings).log_format == "json":
        log_format.use_json()
        format_console_of_runs(log_format.JsonFormatter())


def _warn_of_settings_without_effect() -> None:
    """Only that: a code location must load. `orchestrator serve` refuses to start."""
    if home := lookup("DAGSTER_HOME"):
        for fault in without_effect(Path(home).expanduser()):
            _log.warning("Setting without effect: %s", fault)


_pipelines = load_defs_folder(folder_of_pipelines())

defs = dg.Definitions.merge(
    _pipelines.definitions,
    shared(lambda: _pipelines.watched),
    # "Materialize" and backfills run Dagster's own job over all assets. Steps wait for other machines: one process
    # does, and a cancel reaches whichever step runs.
    dg.Definitions(executor=dg.in_process_executor),
)
