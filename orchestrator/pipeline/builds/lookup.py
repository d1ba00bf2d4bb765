"""Which build a partition stands for, found before any money is spent: in Jenkins, or in our sensor's record."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import dagster as dg

from orchestrator.errors import BuildUnusable, JenkinsBadAnswer, JenkinsError, JenkinsNotFound, JenkinsUnavailable
from orchestrator.pipeline.builds.discovery import TickResult, discover
from orchestrator.pipeline.builds.hosts import AllowedHosts, allowed_hosts, host_of, note_host, require_usable_project
from orchestrator.pipeline.builds.reading import Limits
from orchestrator.pipeline.builds.records import search_records
from orchestrator.pipeline.builds.signature import Signer
from orchestrator.resources import retry
from orchestrator.resources.jenkins import LARGEST_NUMBER, Build, Jenkins, can_be_job, is_address
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings

_log = logging.getLogger(__name__)

_ENCODED = str.maketrans({char: f"%{ord(char):02X}" for char in "#%/?[]\\"})
"""How Jenkins stores branch names: https://github.com/jenkinsci/branch-api-plugin, NameEncoder."""


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
        settings: whether UNSTABLE builds pass, and which Git hosts are allowed.
        outage: how long Jenkins is waited for when the build was never recorded.

    Raises:
        BuildUnusable: it is not a build, still runs, did not succeed or is on a Git host that is not allowed, or nobody
            knows it any more.
        SettingsError: MLPROJECT_URI is no address.
        JenkinsError: Jenkins did not answer well, and there is no record.
    """
    require_usable_project(jenkins.project)
    records = search_records(instance, Signer.of(instance, name), partition)
    record = records.build
    if records.refused:
        _log.warning(f"Left out records of build {partition}: {records}")
    job, number = (record.job, record.number) if record else _job_and_number(partition, jenkins.job)
    # With a record, there is nothing to wait for.
    server = jenkins if record else jenkins.with_policy(outage)
    try:
        build = server.build(job, number)
    except JenkinsNotFound as error:
        if record is None:
            raise BuildUnusable(
                f"Jenkins has no build {job} #{number} (any more), and {records}; choose another build: {error}"
            ) from error
        _log.info(f"Going by what was recorded of build {record.name}: Jenkins has it no more")
        build = record
    except (JenkinsUnavailable, JenkinsBadAnswer) as error:  # the latter may be a proxy's, too
        if record is None:
            raise type(error)(f"{error}; of build {partition}, {records}") from error
        _log.warning(f"Going by what was recorded of build {record.name}: {error}")
        build = record
    if record and build.timestamp != record.timestamp:
        _log.info(f"Going by what was recorded of build {record.name}: the number is another build's by now")
        build = record
    build = _usable(build, unstable=settings.train_unstable)
    if build.repository and not is_address(jenkins.project):
        hosts = _HostSearch(jenkins, instance, name, settings).allowed(build, is_recorded=record is not None)
        if refusal := hosts.refusal(build):
            raise BuildUnusable(f"Refused {refusal}")
    return build


@dataclass(frozen=True)
class _HostSearch:
    """Looks for the Git hosts that a pipeline's builds may be on."""

    jenkins: Jenkins
    instance: dg.DagsterInstance
    pipeline: str
    settings: JenkinsSettings

    def allowed(self, build: Build, *, is_recorded: bool) -> AllowedHosts:
        """As set or noted; else as Jenkins shows it now.

        Args:
            build: what is to be trained.
            is_recorded: our sensor recorded it.
        """
        hosts = allowed_hosts(self.instance, self.settings, pipeline=self.pipeline, job=self.jenkins.job)
        return hosts or self._by_jenkins(build, is_recorded=is_recorded)

    def _by_jenkins(self, build: Build, *, is_recorded: bool) -> AllowedHosts:
        """Where the sensor has not noted one yet, because it is off, or has seen no success."""
        try:
            found = discover(
                self.jenkins,
                None,
                job=self.jenkins.job,
                patterns=self.settings.train_branches,
                unstable=self.settings.train_unstable,
                limits=Limits(builds=100, seconds=10),
            )
        except JenkinsError as error:
            if is_recorded and build.job == self.jenkins.job:
                _log.warning(f"Going by the Git host of the record of build {build.name}: {error}")
                return AllowedHosts((str(host_of(build)),), f"the host of {build.name}, as recorded")
            raise
        hosts = note_host(self.instance, found.register, found.branches, pipeline=self.pipeline)
        return hosts or _host_of_newest(found)


def _host_of_newest(found: TickResult) -> AllowedHosts:
    """Where no branch is the primary one, and none is to be trained: whoever launches this has chosen it himself."""
    own = [build for build in found.register if host_of(build) and not found.branches.of_change_request(build)]
    newest = max(own, key=lambda build: (build.timestamp, build.number), default=None)
    if newest is None:
        return AllowedHosts((), "no host, because there is no success of a branch")
    return AllowedHosts((str(host_of(newest)),), f"the host of {newest.name}, the newest success")


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
    branch, separator, number = partition.rpartition("#")
    # As `partition_key` writes it, and no other spelling of the same build.
    found = re.fullmatch(r"[1-9][0-9]{0,9}", number)
    if not found or int(number) > LARGEST_NUMBER or (separator and not branch) or not can_be_job(branch):
        raise BuildUnusable(f"partition {partition[:100]!r} names no build: it must be as in 12 or main#12")
    return (f"{job}/{branch.translate(_ENCODED)}" if branch else job), int(number)
