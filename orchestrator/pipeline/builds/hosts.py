"""On which Git hosts a build's own remote may be: what a Jenkinsfile checks out decides whose code gets our secrets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import dagster as dg

from orchestrator import names
from orchestrator.dagster_instance import keep_value, kept_value
from orchestrator.errors import SettingsError
from orchestrator.pipeline.builds.branches import BranchChoice
from orchestrator.resources.jenkins import Build, GitAddress
from orchestrator.settings.groups import JenkinsSettings


@dataclass(frozen=True)
class AllowedHosts:
    """Git hosts, and how they are known.

    Attributes:
        patterns: names and patterns of hosts, in lower case.
        evidence: the setting, or the build that showed it.
    """

    patterns: tuple[str, ...]
    evidence: str

    def __str__(self) -> str:
        return f"{', '.join(self.patterns)} ({self.evidence})"

    def refusal(self, build: Build) -> str | None:
        """Why a build may not be trained from where it is, in one sentence; None: it may.

        Args:
            build: one without a remote passes, and is refused for that.
        """
        host = host_of(build)
        if build.repository is None or (host and any(fnmatchcase(host, pattern) for pattern in self.patterns)):
            return None
        return (
            f"build {build.name} checked out {build.repository}, and only remotes on {self} are trained: set "
            "MLPROJECT_HOSTS to the Git hosts of your repositories, or MLPROJECT_URI to the repository"
        )


def host_of(build: Build) -> str | None:
    """The Git host of a build's remote, in lower case; None: it has no remote that can be read."""
    try:
        return GitAddress.parse(build.repository or "").host_name
    except ValueError:
        return None


def allowed_hosts(
    instance: dg.DagsterInstance, settings: JenkinsSettings, *, pipeline: str, job: str
) -> AllowedHosts | None:
    """What MLPROJECT_HOSTS says, else what `note_host` noted; None: neither.

    Args:
        instance: Dagster.
        settings: of the pipeline.
        pipeline: its name.
        job: full name of the job that it watches.
    """
    if settings.hosts:
        return AllowedHosts(settings.hosts, "MLPROJECT_HOSTS")
    return _read(kept_value(instance, _key(pipeline, job)))


def note_host(
    instance: dg.DagsterInstance, builds: Iterable[Build], branches: BranchChoice, *, pipeline: str
) -> AllowedHosts | None:
    """Allow the host of the primary branch's newest success, for good; None: none of these builds is such a one.

    For good, because a build that checks out from elsewhere would else allow itself as soon as it is the newest.

    Args:
        instance: Dagster.
        builds: successes, as Jenkins tells of them.
        branches: which of them are of the primary branch; where none is known, those to train count.
        pipeline: its name.
    """
    found = [build for build in builds if host_of(build) and branches.trains(build)]
    primary = [build for build in found if branches.is_primary(build)]
    newest = max(primary or found, key=lambda build: (build.timestamp, build.number), default=None)
    if newest is None:
        return None
    value = json.dumps({"host": host_of(newest), "build": newest.name})
    return _read(keep_value(instance, _key(pipeline, branches.job), value))


def _key(pipeline: str, job: str) -> str:
    digest = hashlib.sha256(json.dumps([pipeline, job]).encode()).hexdigest()
    return names.GIT_HOST + digest[:32]


def _read(text: str | None) -> AllowedHosts | None:
    if text is None:
        return None
    kept = json.loads(text)
    return AllowedHosts((kept["host"],), f"the host of {kept['build']}, the primary branch's newest success at first")


_LOGIN = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:(?!\d{1,5}/)[^@]*@|[^/@:\s]+:(?!//)[^@]*@[^/]+:)")


def require_usable_project(uri: str | None) -> None:
    """Refuse an MLPROJECT_URI that is no address: an option, a helper program, a password, or what cannot be printed.

    Raises:
        SettingsError: says what is wrong with it, and does not show it.
    """
    text = uri or ""
    address = text.partition("#")[0]
    fault = None
    if not text.isprintable():
        fault = "characters that cannot be printed"
    elif address.lstrip().startswith("-"):
        fault = "a - at its beginning, as options of a program do"
    elif re.match(r"\s*[A-Za-z0-9+.-]+::", address):
        fault = "the name of a program before its ::, which Git would start"
    elif _LOGIN.match(text):
        fault = "a password before its @ (let Git log in on the instance, by a .netrc or a key in the image, AMI_ID)"
    elif "://" in address and "?" in address:
        fault = "a query behind its ?, which Git does not send, and MLflow's tags would show"
    if fault:
        raise SettingsError(f"MLPROJECT_URI holds {fault}: write it as https://host/project.git")
