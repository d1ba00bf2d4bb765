"""The one entry point: every pipeline under defs/, and the resources that they share."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from orchestrator import names
from orchestrator.janitor.sensor import janitor_sensor, janitor_spec
from orchestrator.pipeline.defs_folder import folder_of_pipelines, load_defs_folder
from orchestrator.pipeline.training.run_scope import TrainingAttempts
from orchestrator.pipeline.watched import WatchedPipelines, pipelines_of_this_process
from orchestrator.resources.ec2.client import Ec2Resource
from orchestrator.resources.jenkins.client import JenkinsResource
from orchestrator.resources.mlflow.client import MlflowResource
from orchestrator.resources.ssh.connection import SshResource
from orchestrator.settings.variables import hand_aws_to_boto3


def shared(pipelines: Callable[[], WatchedPipelines] = pipelines_of_this_process) -> dg.Definitions:
    """What all pipelines of a code location share: the resources and the janitor. Add it once.

    In somebody else's Dagster project:

        defs = dg.Definitions.merge(dg.load_from_defs_folder(path_within_project=Path(__file__)), shared())

    It sets no executor, because that would be the other assets' too, and hands AWS_* of `.env` to boto3.

    Args:
        pipelines: which ones the janitor watches, asked at each tick; default: those that this process has built.
    """
    hand_aws_to_boto3()
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


_pipelines = load_defs_folder(folder_of_pipelines())

defs = dg.Definitions.merge(
    _pipelines.definitions,
    shared(lambda: _pipelines.watched),
    # "Materialize" and backfills run Dagster's own job over all assets. Steps wait for other machines: one process
    # does, and a cancel reaches whichever step runs.
    dg.Definitions(executor=dg.in_process_executor),
)
