"""The one entry point: every pipeline under defs/, and the resources that they share."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from orchestrator import names
from orchestrator.janitor.sensor import janitor, janitor_spec
from orchestrator.pipeline.training.run_scope import TrainingAttempts
from orchestrator.resources.ec2.client import Ec2Resource
from orchestrator.resources.jenkins.client import JenkinsResource
from orchestrator.resources.mlflow.client import MlflowResource
from orchestrator.resources.ssh.connection import SshResource


def shared() -> dg.Definitions:
    """What all pipelines share: the resources, the janitor, and the executor."""
    return dg.Definitions(
        assets=[janitor_spec],
        sensors=[janitor],
        resources={
            names.ResourceKey.JENKINS: JenkinsResource(),
            names.ResourceKey.EC2: Ec2Resource(),
            names.ResourceKey.SSH: SshResource(),
            names.ResourceKey.MLFLOW: MlflowResource(),
            names.ResourceKey.ATTEMPTS: TrainingAttempts(),
        },
        # Steps wait for other machines: one process does, and a cancel reaches whichever step runs.
        executor=dg.in_process_executor,
    )


defs = dg.Definitions.merge(dg.load_from_defs_folder(path_within_project=Path(__file__).parent), shared())
