"""Builds in Dagster: their partitions, the asset that records them, and the sensor that finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

import dagster as dg
from pydantic import ValidationError

from orchestrator import names
from orchestrator.errors import BuildUnusable, JenkinsBadAnswer, JenkinsNotFound, JenkinsUnavailable, SettingsError
from orchestrator.pipeline.builds.cursor import Cursor
from orchestrator.pipeline.builds.discovery import Limits, Settled, tick
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.jenkins.client import Jenkins, JenkinsResource
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import Settings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

PATIENCE_SECONDS = 90.0
"""How long a run rides out an outage of Jenkins, when the build was never recorded."""

_ENCODED = str.maketrans({char: f"%{ord(char):02X}" for char in "#%/?[]\\"})
"""How Jenkins stores branch names: https://github.com/jenkinsci/branch-api-plugin, NameEncoder."""


def builds_partitions(name: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a pipeline, one per build."""
    return dg.DynamicPartitionsDefinition(name=f"{name}_builds")


def partition_key(build: Build, job: str) -> str:
    """``12``, or ``feature/x#12`` for a build of a branch.

    Args:
        build: a build of the job, or of one of its branches.
        job: full name of the job that the pipeline watches.
    """
    if build.job == job:
        return str(build.number)
    return f"{unquote(build.job.removeprefix(f'{job}/'))}#{build.number}"


def jenkins_build_key(name: str) -> dg.AssetKey:
    """The external asset whose materialisations are the builds."""
    return dg.AssetKey([name, "jenkins_build"])


def jenkins_build_spec(name: str) -> dg.AssetSpec:
    """The external asset ``<name>/jenkins_build``; the sensor reports its materialisations."""
    return dg.AssetSpec(
        jenkins_build_key(name),
        description="A successful Jenkins build, with the commit that it tested. Reported by the sensor.",
        kinds={"jenkins"},
        group_name=name,
        partitions_def=builds_partitions(name),
    )


def jenkins_sensor(
    name: str,
    settings: Settings,
    job: UnresolvedAssetJobDefinition,
    *,
    interval_seconds: int = 15,
    limits: Limits | None = None,
) -> dg.SensorDefinition:
    """The sensor that turns each successful build into a partition and a run.

    Args:
        name: the pipeline.
        settings: read at each tick, so that a fault in them fails the tick and not the code location.
        job: what to run for each build.
        interval_seconds: least time between two ticks.
        limits: what one tick may do. Its 500 builds take the daemon about 10 s to store in SQLite.
    """

    @dg.sensor(
        name=f"{name}_jenkins_sensor",
        target=job,
        minimum_interval_seconds=interval_seconds,
        required_resource_keys={names.ResourceKey.JENKINS},
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains every build of JENKINS_JOB_NAME that succeeds; registers past ones for backfill.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        jenkins: JenkinsResource = getattr(context.resources, names.ResourceKey.JENKINS)
        read = settings.read(JenkinsSettings)
        before = _cursor(context)
        with jenkins.connect(settings) as server:
            settled = tick(server, before, job=server.job, unstable=read.train_unstable, limits=limits or Limits())
            return _result(context, name, server.job, settled)

    return evaluate


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
            return Build.from_json(metadata.value)
    return None


def find_build(
    jenkins: Jenkins, instance: dg.DagsterInstance, name: str, partition: str, settings: JenkinsSettings
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

    Raises:
        BuildUnusable: it is not a build, still runs or did not succeed, or nobody knows it any more.
        JenkinsError: Jenkins did not answer well, and there is no record.
    """
    log = dg.get_dagster_logger()
    record = recorded_build(instance, name, partition)
    job, number = (record.job, record.number) if record else _place(partition, jenkins.job)
    try:
        # With a record, there is nothing to wait for.
        build = jenkins.build(job, number, patience_seconds=None if record else PATIENCE_SECONDS)
    except JenkinsNotFound as error:
        if record is None:
            raise BuildUnusable(
                f"Jenkins has no build {job} #{number} (any more) and none was recorded; choose another build: {error}"
            ) from error
        log.info(f"Jenkins has build {record.name} no more; going by what was recorded of it")
        build = record
    except (JenkinsUnavailable, JenkinsBadAnswer) as error:  # the latter may be a proxy's page of an outage
        if record is None:
            raise
        log.warning(f"going by what was recorded of build {record.name}: {error}")
        build = record
    if record and build.timestamp != record.timestamp:
        log.info(f"{build.name} is another build by now; going by what was recorded")
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


def _place(partition: str, job: str) -> tuple[str, int]:
    branch, _, number = partition.rpartition("#")
    if not number.isdecimal():
        raise BuildUnusable(f"partition {partition!r} names no build: it must be as in 12 or main#12")
    return (f"{job}/{branch.translate(_ENCODED)}" if branch else job), int(number)


def _cursor(context: dg.SensorEvaluationContext) -> Cursor | None:
    try:
        return Cursor.model_validate_json(context.cursor) if context.cursor else None
    except ValidationError as error:
        raise SettingsError(
            f"the cursor of sensor {context.sensor_name} cannot be read: reset it on the sensor's page "
            f"(known builds are not trained again)"
        ) from error


def _result(context: dg.SensorEvaluationContext, name: str, job: str, settled: Settled) -> dg.SensorResult:
    keyed = list(_with_keys(context, settled.register, job))
    launch = set(settled.launch)
    requests = [_run_request(name, key, build) for key, build in keyed if build in launch]
    partitions: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if keyed:
        known = set(context.instance.get_dynamic_partitions(f"{name}_builds"))
        if missing := sorted({key for key, _ in keyed} - known):
            partitions.append(builds_partitions(name).build_add_request(missing))
    return dg.SensorResult(
        cursor=settled.cursor.dump(),
        dynamic_partitions_requests=partitions,
        asset_events=[_materialization(name, key, build) for key, build in _unrecorded(context.instance, name, keyed)],
        run_requests=requests,
        skip_reason=None if requests else _seen(settled),
    )


def _with_keys(context: dg.SensorEvaluationContext, builds: Sequence[Build], job: str) -> Iterator[tuple[str, Build]]:
    for build in builds:
        key = partition_key(build, job)
        if "..." in key or not key.isprintable():
            context.log.warning(f"build {build.name} is left out: Dagster takes no partition named {key!r}")
        else:
            yield key, build


def _unrecorded(
    instance: dg.DagsterInstance, name: str, keyed: Sequence[tuple[str, Build]]
) -> Iterator[tuple[str, Build]]:
    """The builds that the event log lacks; a daemon that died before it kept the cursor left others there."""
    materialized = instance.get_materialized_partitions(jenkins_build_key(name)) if keyed else set()
    for key, build in keyed:
        record = recorded_build(instance, name, key) if key in materialized else None
        if record is None or (record.job, record.timestamp) != (build.job, build.timestamp):
            yield key, build


def _materialization(name: str, key: str, build: Build) -> dg.AssetMaterialization:
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
    shown = {label: value for label, value in metadata.items() if value is not None}
    return dg.AssetMaterialization(jenkins_build_key(name), partition=key, metadata=shown)


def _run_request(name: str, key: str, build: Build) -> dg.RunRequest:
    tags = {"jenkins/job": build.job, "jenkins/build": str(build.number)}
    if build.commit:
        tags["jenkins/commit"] = build.commit
    return dg.RunRequest(run_key=f"{name}:{key}:{build.timestamp}", partition_key=key, tags=tags)


def _seen(settled: Settled) -> str:
    """What a tick without a run saw, in one line."""
    told = f"{len(settled.register)} past builds registered" if settled.register else "no new build"
    if settled.running:
        shown = ", ".join(settled.running[:5]) + (", ..." if len(settled.running) > 5 else "")
        told += f"; {len(settled.running)} running: {shown}"
    return told + ("; the next tick reads on in the history" if settled.unread else "")
