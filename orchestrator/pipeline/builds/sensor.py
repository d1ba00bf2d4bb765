"""The sensor: it registers each successful build as a partition, records it, and launches its run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import ValidationError

from orchestrator import names
from orchestrator.dagster_instance import materialized_partitions
from orchestrator.errors import SettingsError
from orchestrator.pipeline.builds import breaker
from orchestrator.pipeline.builds.cursor import Cursor
from orchestrator.pipeline.builds.discovery import TickResult, discover
from orchestrator.pipeline.builds.hosts import AllowedHosts, allowed_hosts, note_host
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.pipeline.builds.records import (
    builds_partitions,
    jenkins_build_key,
    materialization,
    partition_key,
    search_records,
)
from orchestrator.pipeline.builds.signature import Signer
from orchestrator.resources import retry
from orchestrator.resources.jenkins import Build, JenkinsResource, is_address
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import SettingsSource

if TYPE_CHECKING:
    from orchestrator.dagster_instance import UnresolvedAssetJobDefinition


def jenkins_sensor(
    name: str,
    settings: SettingsSource,
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
        name=names.jenkins_sensor(name),
        target=job,
        minimum_interval_seconds=interval_seconds,
        required_resource_keys={names.ResourceKey.JENKINS},
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Trains the builds of JENKINS_JOB_NAME that succeed, as TRAIN_BRANCHES says; registers the others "
        "and past ones for backfill.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        jenkins: JenkinsResource = getattr(context.resources, names.ResourceKey.JENKINS)
        read = settings.read(JenkinsSettings)
        before = _cursor(context)
        pause = breaker.require_closed(context.instance, name, settings, minutes=read.breaker_minutes)
        with jenkins.connect(read, project=settings.raw("MLPROJECT_URI")) as server:
            found = discover(
                server.within(retry.JENKINS_TICK_SECONDS),
                before,
                job=server.job,
                patterns=read.train_branches,
                unstable=read.train_unstable,
                limits=limits or Limits(),
            )
            hosts = None if is_address(server.project) else _hosts(context, name, read, found)
            return _result(context, name, server.job, found, hosts, pause)

    return evaluate


def _cursor(context: dg.SensorEvaluationContext) -> Cursor | None:
    try:
        return Cursor.model_validate_json(context.cursor) if context.cursor else None
    except ValidationError as error:
        raise SettingsError(
            f"the cursor of sensor {context.sensor_name} cannot be read: reset it on the sensor's page "
            f"(known builds are not trained again)"
        ) from error


def _hosts(
    context: dg.SensorEvaluationContext, name: str, settings: JenkinsSettings, found: TickResult
) -> AllowedHosts | None:
    """The Git hosts that builds may be on; those of the first tick with a success are noted for good."""
    hosts = allowed_hosts(context.instance, settings, pipeline=name, job=found.branches.job)
    if hosts is None:
        hosts = note_host(context.instance, found.register, found.branches, pipeline=name)
        if hosts:
            context.log.info(f"Noted which Git host builds may be on, until MLPROJECT_HOSTS names others: {hosts}")
    for build in found.launch:
        if hosts and (refusal := hosts.refusal(build)):
            context.log.warning(f"Launched a run that its first step refuses: {refusal}")
    return hosts


def _result(
    context: dg.SensorEvaluationContext,
    name: str,
    job: str,
    found: TickResult,
    hosts: AllowedHosts | None,
    pause: breaker.Pause | None,
) -> dg.SensorResult:
    # Not the module's logger: a tick's page shows this one only.
    for fault in found.faults:
        context.log.warning(f"Left out what cannot be read: {fault}")
    for build in found.left_out:
        context.log.info(f"Registered build {build.name} without training it: {_why_left_out(build, found)}")
    keyed = list(_with_keys(context, found.register, job))
    launch = set(found.launch)
    requests = [_run_request(name, key, build) for key, build in keyed if build in launch]
    cursor: str | None = found.cursor.dump()
    if pause and requests:
        context.log.warning(f"Trying one build, for {pause}")
        # What is not launched now is found again, as long as the cursor stays; what was, has its run key.
        requests, cursor = _newest_untried(context.instance, requests), context.cursor
    _note_known_commits(context, name, requests)
    partitions: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if keyed:
        known = set(context.instance.get_dynamic_partitions(names.builds(name)))
        if missing := sorted({key for key, _ in keyed} - known):
            partitions.append(builds_partitions(name).build_add_request(missing))
    if requests and str(found.branches):
        context.log.info(f"Watched {found.branches}")
    return dg.SensorResult(
        cursor=cursor,
        dynamic_partitions_requests=partitions,
        asset_events=list(_records(context.instance, name, keyed, hosts)),
        run_requests=requests,
        skip_reason=None if requests else _summary(found),
    )


def _with_keys(context: dg.SensorEvaluationContext, builds: Sequence[Build], job: str) -> Iterator[tuple[str, Build]]:
    for build in builds:
        key = partition_key(build, job)
        if "..." in key or not key.isprintable():
            context.log.warning(f"Left out build {build.name}: Dagster takes no partition named {key!r}")
        else:
            yield key, build


def _records(
    instance: dg.DagsterInstance, name: str, keyed: Sequence[tuple[str, Build]], hosts: AllowedHosts | None
) -> Iterator[dg.AssetMaterialization]:
    """Of the builds that the event log lacks; a daemon that died before it kept the cursor left others there."""
    if not keyed:
        return
    signer = Signer.of(instance, name)
    materialized = materialized_partitions(instance, jenkins_build_key(name))
    for key, build in keyed:
        record = search_records(instance, signer, key).build if key in materialized else None
        if record is None or (record.job, record.timestamp) != (build.job, build.timestamp):
            yield materialization(signer, key, build, hosts=hosts)


def _run_request(name: str, key: str, build: Build) -> dg.RunRequest:
    tags = {names.RunTag.JENKINS_JOB: build.job, names.RunTag.JENKINS_BUILD: str(build.number)}
    if build.commit:
        tags[names.RunTag.JENKINS_COMMIT] = build.commit
    return dg.RunRequest(run_key=f"{name}:{key}:{build.timestamp}", partition_key=key, tags=tags)


def _note_known_commits(context: dg.SensorEvaluationContext, name: str, requests: Sequence[dg.RunRequest]) -> None:
    """Say which commits are trained again: a new branch begins with one that another branch has built."""
    first: dict[str, str] = {}
    for request in requests[:_LOOKED_UP]:
        commit, partition = request.tags.get(names.RunTag.JENKINS_COMMIT), str(request.partition_key)
        if not commit:
            continue
        if commit not in first:
            tags = {names.RunTag.JENKINS_COMMIT: commit}
            filters = dg.RunsFilter(job_name=names.training_job(name), tags=tags)
            known = context.instance.get_run_records(filters, limit=1)
            first[commit] = known[0].dagster_run.tags.get(names.DagsterTag.PARTITION, "") if known else partition
        if first[commit] not in ("", partition):
            context.log.info(
                f"Launched a run for build {partition} of commit {commit[:12]}, which build {first[commit]} has as "
                "well: each build is trained, whatever its commit"
            )


_LOOKED_UP = 50
"""So many of a tick's builds: a look at Dagster's runs for each commit."""


def _newest_untried(instance: dg.DagsterInstance, requests: Sequence[dg.RunRequest]) -> list[dg.RunRequest]:
    for request in reversed(requests):
        tags = {names.DagsterTag.RUN_KEY: request.run_key or ""}
        if not instance.get_run_records(dg.RunsFilter(tags=tags), limit=1):
            return [request]
    return []


def _summary(found: TickResult) -> str:
    """What a tick without a run saw, in one line."""
    past = len(found.register) - len(found.left_out)
    parts = [f"{past} past builds registered"] if past > 0 else []
    if found.left_out:
        parts.append(f"{len(found.left_out)} new builds registered, not trained")
    summary = ", ".join(parts) or "no new build"
    if found.running:
        running = ", ".join(found.running[:5]) + (", ..." if len(found.running) > 5 else "")
        summary += f"; {len(found.running)} running: {running}"
    if found.unread:
        summary += "; the next tick reads on in the history"
    if found.unreadable:
        summary += f"; given up, because Jenkins' answer cannot be read: {', '.join(found.unreadable[:5])}"
        summary += ", ..." if len(found.unreadable) > 5 else ""
    if found.faults:
        summary += f"; {len(found.faults)} faults in what Jenkins says, see the log"
    return "; ".join(filter(None, (summary, str(found.branches))))


def _why_left_out(build: Build, found: TickResult) -> str:
    if build.change_request or not found.branches.may_train(build.job):
        return f"it is not of a branch to train ({found.branches})"
    return f"it is of branch {build.branch}"
