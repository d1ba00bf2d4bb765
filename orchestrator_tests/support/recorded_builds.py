"""A build as the sensor records it, where no sensor runs; for tests of trainings."""

from __future__ import annotations

import dagster as dg

from orchestrator.pipeline.builds import partition_key
from orchestrator.pipeline.builds.records import materialization
from orchestrator.pipeline.builds.signature import Signer
from orchestrator.resources.jenkins import Build


def record_build(dagster: dg.DagsterInstance, build: Build, *, pipeline: str = "churn") -> None:
    """Record a build of a plain job, signed with this Dagster's key."""
    signer = Signer.of(dagster, pipeline)
    dagster.report_runless_asset_event(materialization(signer, partition_key(build, build.job), build))
