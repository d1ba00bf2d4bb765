"""Builds in Dagster: the sensor that finds them, their partitions, and the asset that records them."""

from orchestrator.pipeline.builds.lookup import find_build
from orchestrator.pipeline.builds.records import (
    builds_partitions,
    jenkins_build_key,
    jenkins_build_spec,
    partition_key,
    recorded_build,
)
from orchestrator.pipeline.builds.sensor import jenkins_sensor

__all__ = [
    "builds_partitions",
    "find_build",
    "jenkins_build_key",
    "jenkins_build_spec",
    "jenkins_sensor",
    "partition_key",
    "recorded_build",
]
