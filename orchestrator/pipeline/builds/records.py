"""What Dagster holds of each build: its partition, the asset that records it, and how to find it again."""

from __future__ import annotations

import logging
from urllib.parse import unquote

import dagster as dg

from orchestrator import names
from orchestrator.errors import BuildUnusable, JenkinsBadAnswer, JenkinsNotFound, JenkinsUnavailable
from orchestrator.resources import retry
from orchestrator.resources.jenkins import Build, Jenkins
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings

_log = logging.getLogger(__name__)

_ENCODED = str.maketrans({char: f"%{ord(char):02X}" for char in "#%/?[]\\"})
"""How Jenkins stores branch names: https://github.com/jenkinsci/branch-api-plugin, NameEncoder."""


def builds_partitions(name: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a pipeline, one per build."""
    return dg.DynamicPartitionsDefinition(name=names.builds(name))


def partition_key(build: Build, job: str) -> str:
    """`12`, or `feature/x#12` for a build of a branch.

    Args:
        build: a build of the job, or of one of its branches.
        job: full name of the job that the pipeline watches.
    """
    if build.job == job:
        return str(build.number)
    return f"{unquote(build.job.removeprefix(f'{job}/'))}#{build.number}"


def jenkins_build_key(name: str) -> dg.AssetKey:
    """The external asset whose materialisations are the builds."""
    return dg.AssetKey([name, names.JENKINS_BUILD])


def jenkins_build_spec(name: str) -> dg.AssetSpec:
    """The external asset `<name>/jenkins_build`; the sensor reports its materialisations."""
    return dg.AssetSpec(
        jenkins_build_key(name),
        description="A successful Jenkins build, with the commit that it tested. Reported by the sensor.",
        kinds={"jenkins"},
        group_name=name,
        partitions_def=builds_partitions(name),
    )


def materialization(name: str, key: str, build: Build) -> dg.AssetMaterialization:
    """What the sensor reports of a build, for `recorded_build` to read.

    Args:
        name: the pipeline.
        key: the build's partition key.
        build: the build.
    """
    metadata: dict[str, dg.MetadataValue | str | None] = {
        "url": dg.MetadataValue.url(build.url),
        "commit": build.commit,
        "branch": build.branch,
        "repository": build.repository,
        "result": build.result,
        "timestamp": dg.MetadataValue.timestamp(build.timestamp / 1000),
        "duration_seconds": dg.MetadataValue.float(build.duration_ms / 1000),
        "build": dg.MetadataValue.json(build.to_json()),
    }
    known = {label: value for label, value in metadata.items() if value is not None}
    return dg.AssetMaterialization(jenkins_build_key(name), partition=key, metadata=known)


def recorded_build(instance: dg.DagsterInstance, name: str, partition: str) -> Build | None:
    """The build that the sensor recorded last for a partition; None when it recorded none.

    Args:
        instance: the Dagster instance with the event log.
        name: the pipeline.
        partition: the build's partition key.
    """
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(jenkins_build_key(name), asset_partitions=[partition]), limit=10
    ).records
    for record in records:
        event = record.asset_materialization
        metadata = event.metadata.get("build") if event else None
        if isinstance(metadata, dg.JsonMetadataValue):  # one reported by hand in the UI has none
            try:
                return Build.from_json(metadata.value)
            except ValueError as error:  # nor is every one that has it ours
                _log.warning(f"Left out a record of build {partition} that cannot be read: {str(error)[:200]}")
    return None


def find_build(
    jenkins: Jenkins,
    instance: dg.DagsterInstance,
    name: str,
    partition: str,
    settings: JenkinsSettings,
    *,
    outage: RetryPolicy = retry.JENKINS_FOR_A_RUN,
) -> Build:
    """The build of a partition: from Jenkins, or as the sensor recorded it when Jenkins has it no more.

    The record also counts when Jenkins cannot be reached or talks nonsense, and when the number meanwhile belongs
    to another build because the job was re-created.

    Args:
        jenkins: the server.
        instance: the Dagster instance with the event log.
        name: the pipeline.
        partition: the build's partition key.
        settings: whether UNSTABLE builds pass.
        outage: how long Jenkins is waited for when the build was never recorded.

    Raises:
        BuildUnusable: it is not a build, still runs or did not succeed, or nobody knows it any more.
        JenkinsError: Jenkins did not answer well, and there is no record.
    """
    record = recorded_build(instance, name, partition)
    job, number = (record.job, record.number) if record else _job_and_number(partition, jenkins.job)
    # With a record, there is nothing to wait for.
    server = jenkins if record else jenkins.with_policy(outage)
    try:
        build = server.build(job, number)
    except JenkinsNotFound as error:
        if record is None:
            raise BuildUnusable(
                f"Jenkins has no build {job} #{number} (any more) and none was recorded; choose another build: {error}"
            ) from error
        _log.info(f"Going by what was recorded of build {record.name}: Jenkins has it no more")
        build = record
    except (JenkinsUnavailable, JenkinsBadAnswer) as error:  # the latter may be a proxy's, too
        if record is None:
            raise
        _log.warning(f"Going by what was recorded of build {record.name}: {error}")
        build = record
    if record and build.timestamp != record.timestamp:
        _log.info(f"Going by what was recorded of build {record.name}: the number is another build's by now")
        build = record
    return _usable(build, unstable=settings.train_unstable)


def _usable(build: Build, *, unstable: bool) -> Build:
    if not build.finished:
        raise BuildUnusable(f"build {build.name} still runs: wait until it ends; the sensor trains it if it succeeds")
    if not build.succeeded(unstable=unstable):
        hint = "set TRAIN_UNSTABLE=true to train it, or " if build.result == "UNSTABLE" else ""
        raise BuildUnusable(
            f"build {build.name} ended as {build.result}, and only successful builds are trained: "
            f"{hint}repair and build it again ({build.url})"
        )
    return build


def _job_and_number(partition: str, job: str) -> tuple[str, int]:
    branch, _, number = partition.rpartition("#")
    if not number.isdecimal():
        raise BuildUnusable(f"partition {partition!r} names no build: it must be as in 12 or main#12")
    return (f"{job}/{branch.translate(_ENCODED)}" if branch else job), int(number)
