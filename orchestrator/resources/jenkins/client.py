"""The Jenkins client: builds of plain and multibranch jobs, each question one small request."""

from __future__ import annotations

import copy
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import dagster as dg
import requests.auth

from orchestrator.errors import (
    JenkinsBadAnswer,
    JenkinsNotFound,
    JenkinsTooLarge,
    JenkinsUnavailable,
)
from orchestrator.resources import retry
from orchestrator.resources.http import (
    LARGEST_ANSWER,
    Address,
    HttpAnswer,
    HttpClient,
    HttpRequest,
    HttpServer,
    JsonObject,
)
from orchestrator.resources.http.client import SHORTEST_TRY_SECONDS
from orchestrator.resources.jenkins.answers import (
    BRANCH_FIELDS,
    BUILD_FIELDS,
    BUILD_LISTS,
    BUILD_SUMMARY_FIELDS,
    Build,
    BuildPage,
    JobOverview,
    UnreadableBuild,
    answers_question,
    build_list,
    build_of,
    build_summary_of,
    each_build,
    listed,
    overview_of,
)
from orchestrator.resources.jenkins.checkout import is_address
from orchestrator.resources.jenkins.default_branch import default_branch
from orchestrator.resources.jenkins.errors import explain
from orchestrator.resources.jenkins.pasted import job_name, server_address
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import JenkinsSettings

T = TypeVar("T")

PAGE_BYTES = 8 * 2**20
"""Of builds with their details: a common build has 1 kB. Read into Python, it takes several times as much."""


RECENT_BUILDS = 100
"""So many of the newest builds stand under `builds`, which spares Jenkins the others."""

_MANY, _SOME = 20, 2
"""Builds of a plain job, and of a branch, where `allBuilds` has to be asked for."""


class Jenkins:
    """Asks one Jenkins server, with retries, and explains what goes wrong.

    Follows https://www.jenkins.io/doc/book/using/remote-access-api/. Addresses are made from JENKINS_URL
    alone: those that Jenkins reports are for people, and often lead nowhere from here.

    Attributes:
        url: Jenkins' address, with a slash at its end.
        job: full name of the job that the settings name.
        project: MLPROJECT_URI; None where it is not set.
    """

    def __init__(
        self, settings: JenkinsSettings, *, project: str | None = None, policy: RetryPolicy = retry.JENKINS
    ) -> None:
        """Prepare a session; nothing is asked yet.

        Args:
            settings: address, user, token and CA. A login in the address counts for nothing beside them.
            project: MLPROJECT_URI, if set: tells the project's own checkout from a pipeline library's.
            policy: how long one question rides out an outage.

        Raises:
            SettingsError: JENKINS_URL is no http(s) address, or JENKINS_CA_BUNDLE no file.
        """
        # Bytes, because requests would encode text as Latin-1.
        token = settings.token.get_secret_value().strip().encode()
        server = HttpServer(
            address=Address.parse(
                server_address(settings.url), setting="JENKINS_URL", example="https://jenkins.example.com/"
            ),
            setting="JENKINS_URL",
            auth=requests.auth.HTTPBasicAuth(settings.user.encode(), token),
            ca_bundle=settings.ca_bundle,
            ca_setting="JENKINS_CA_BUNDLE",
        )
        self._timeout_seconds = settings.timeout_seconds
        self._http = HttpClient(
            server, policy=self._with_timeout(policy), explain=functools.partial(explain, user=settings.user)
        )
        self._end: float | None = None
        self.project = project
        self._keep = settings.build_parameters
        self.url = f"{self._http.uri}/"
        self.job = job_name(settings.job, server=settings.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def with_policy(self, policy: RetryPolicy) -> Self:
        """A client of the same session that is more or less patient."""
        client = copy.copy(self)
        client._http = self._http.with_policy(self._with_timeout(policy))
        return client

    def within(self, seconds: float) -> Self:
        """A client of the same session whose questions, all together, end in this time or fail."""
        client = copy.copy(self)
        client._end = time.monotonic() + seconds
        return client

    def _with_timeout(self, policy: RetryPolicy) -> RetryPolicy:
        return replace(policy, answer_seconds=self._timeout_seconds) if self._timeout_seconds else policy

    def overview(self, job: str, *, newest: int) -> JobOverview:
        """What a job is, and how far its history goes, or that of each branch of a multibranch project, in one request.

        Args:
            job: full name.
            newest: how many builds of a plain job; of a branch, the newest one. 0: only the numbers of their next
                builds, for which Jenkins loads no build.

        Raises:
            JenkinsError: Jenkins did not give it, or the job is a folder.
        """
        path = _job_path(job)
        where = self.url + path

        def read(answer: JsonObject) -> JobOverview:
            overview = overview_of(
                answer, job=job, newest=newest or _MANY, per_branch=_SOME, where=where, only_numbers=not newest
            )
            return replace(overview, remote=self.project) if is_address(self.project) else overview

        def read_if_answered(answer: JsonObject) -> JobOverview | None:
            return read(answer) if answers_question(answer, builds=newest > 0) else None

        number = "nextBuildNumber"
        branch = f"name,{BRANCH_FIELDS},{number}"
        if newest:
            last = f"lastBuild[{BUILD_SUMMARY_FIELDS}]"
            number, branch = f"{number},{last}", f"{branch},{last}"
        if newest > 1:
            number += f",builds[{BUILD_SUMMARY_FIELDS}]{{0,{newest}}}"
        overview = self._ask(path, f"{number},actions[objectUrl],jobs[{branch}]", read_if_answered)
        if overview is not None:
            return overview

        # Something that is not quite Jenkins, or a proxy that lets some fields through: ask for all that may tell.
        def fields_of(builds: int) -> str:
            lists = [f"{key}[{BUILD_SUMMARY_FIELDS}]{{0,{builds}}}" for key in BUILD_LISTS]
            return ",".join(("nextBuildNumber", *lists))

        branch = f"name,{BRANCH_FIELDS},{fields_of(_SOME)}"
        return self._ask(path, f"{fields_of(newest or _MANY)},actions[objectUrl],jobs[{branch}]", read)

    def default_branch(self, remote: str) -> str | None:
        """Where the HEAD of a Git remote points; None when it does not say so to everybody, and at once."""
        return default_branch(remote)

    def builds(self, job: str, *, start: int, stop: int) -> BuildPage:
        """Builds by their place in the history, newest first: from `start` up to, without, `stop`.

        A page that is too large is read in halves, so that one build of that kind costs that build.

        Raises:
            JenkinsError: Jenkins did not give them.
        """
        if stop - start <= 1:
            return self._page(job, start=start, stop=stop, largest_bytes=LARGEST_ANSWER)
        try:
            return self._page(job, start=start, stop=stop, largest_bytes=PAGE_BYTES)
        except JenkinsTooLarge:
            middle = (start + stop) // 2
        newer = self._half(job, start=start, stop=middle)
        if not newer.whole:
            return newer
        older = self._half(job, start=middle, stop=stop)
        return BuildPage(_joined(newer, older), older.whole, (*newer.faults, *older.faults))

    def _half(self, job: str, *, start: int, stop: int) -> BuildPage:
        try:
            return self.builds(job, start=start, stop=stop)
        except JenkinsTooLarge as error:  # a single build
            return self._unreadable(job, start, fault=str(error))

    def _page(self, job: str, *, start: int, stop: int, largest_bytes: int) -> BuildPage:
        where = self.url + _job_path(job)

        def read(items: Sequence[object]) -> tuple[BuildPage, bool]:
            builds, faults = each_build(items, lambda item: self._build(item, job=job), where=where)
            return BuildPage(builds, whole=len(items) >= stop - start, faults=faults), all(map(_is_reference, items))

        page, are_references = self._history(
            job, BUILD_FIELDS, read, start=start, stop=stop, largest_bytes=largest_bytes
        )
        return replace(page, builds=tuple(self._alone(job, build) for build in page.builds)) if are_references else page

    def _alone(self, job: str, build: Build | UnreadableBuild) -> Build | UnreadableBuild:
        try:
            return self.build(job, build.number)
        except (JenkinsNotFound, JenkinsBadAnswer, JenkinsTooLarge):
            return build

    def _history(
        self,
        job: str,
        fields: str,
        read: Callable[[Sequence[object]], T],
        *,
        start: int,
        stop: int,
        largest_bytes: int = LARGEST_ANSWER,
    ) -> T:
        """What `read` makes of a part of a job's history.

        For `allBuilds`, Jenkins loads every build of the job to count them; for `builds`, the newest 100.
        https://github.com/jenkinsci/jenkins/blob/master/core/src/main/java/hudson/model/Job.java (`getNewBuilds`)
        """
        path = _job_path(job)
        where = self.url + path
        part = f"[{fields}]{{{start},{stop}}}"

        def read_list(wanted: str, answer: JsonObject) -> tuple[T] | None:
            key = build_list(answer, wanted)
            return (read(_part(listed(answer, key, where), start, stop)),) if key else None

        recent, everything = BUILD_LISTS
        # What is no Jenkins may have only one of them.
        for wanted in (recent, everything) if stop <= RECENT_BUILDS else (everything, recent):
            found = self._ask(
                path, f"{wanted}{part}", functools.partial(read_list, wanted), largest_bytes=largest_bytes
            )
            if found:
                return found[0]
        raise JenkinsBadAnswer(
            f"{where} answered with JSON without the list {everything}: is JENKINS_URL a Jenkins, and JENKINS_JOB_NAME "
            "a job?"
        )

    def _unreadable(self, job: str, place: int, *, fault: str) -> BuildPage:
        """A page of one build whose details are too large."""
        where = self.url + _job_path(job)

        def read(items: Sequence[object]) -> BuildPage:
            found, faults = each_build(items, lambda item: build_summary_of(item, where=where), where=where)
            builds = tuple(UnreadableBuild(each.number, each.timestamp, None, fault) for each in found)
            return BuildPage(builds, whole=bool(items), faults=faults)

        return self._history(job, BUILD_SUMMARY_FIELDS, read, start=place, stop=place + 1)

    def build(self, job: str, number: int) -> Build:
        """One build.

        Args:
            job: full name.
            number: of the build.

        Raises:
            JenkinsNotFound: there is no such build (any more).
            JenkinsError: Jenkins did not give it.
        """
        return self._ask(f"{_job_path(job)}{number}/", BUILD_FIELDS, lambda answer: self._build(answer, job=job))

    def start_build(self, job: str, parameters: Mapping[str, str] | None = None) -> int:
        """Ask for a build; return the number of its queue item, for `queued_build_number`.

        Never repeated after a failure: the first request may have been heard.

        Args:
            job: full name.
            parameters: build parameters, for a job that has some.

        Raises:
            JenkinsError: Jenkins did not accept it.
        """
        path = _job_path(job) + ("buildWithParameters" if parameters else "build")
        answer = self._http.send_once(
            HttpRequest(
                method="POST",
                path=path,
                form=parameters,
                headers=self._crumb(),
                # Some versions redirect to it instead of answering 201.
                accepts=lambda answer: 300 <= answer.status < 400 and _queue_item(answer) is not None,
            )
        )
        item = _queue_item(answer)
        if item is None:
            raise JenkinsBadAnswer(
                f"{self.url}{path} answered {answer.status} without a queue item: look at the job's page"
            )
        return item

    def queued_build_number(self, item: int) -> int | None:
        """The number of the build that a queue item became; None while it waits.

        Raises:
            JenkinsNotFound: it was cancelled, or left the queue more than five minutes ago.
            JenkinsError: Jenkins did not say.
        """
        answer = self._ask(f"queue/item/{item}/", "cancelled,executable[number]", dict)
        if answer.get("cancelled") is True:
            raise JenkinsNotFound(f"queue item {item} of {self.url} was cancelled: start the build again")
        executable = answer.get("executable")
        number = executable.get("number") if isinstance(executable, dict) else None
        return number if isinstance(number, int) else None

    def _crumb(self) -> dict[str, str]:
        """Jenkins' protection against forged requests; none where it is switched off.

        https://www.jenkins.io/doc/book/security/csrf-protection/
        """
        try:
            answer = self._ask("crumbIssuer/", "crumb,crumbRequestField", dict)
        except JenkinsNotFound:
            return {}
        return {str(answer.get("crumbRequestField", "Jenkins-Crumb")): str(answer.get("crumb", ""))}

    def _build(self, data: object, *, job: str) -> Build:
        where = self.url + _job_path(job)
        number = data.get("number") if isinstance(data, dict) else None
        return build_of(data, job=job, url=f"{where}{number}/", project=self.project, where=where, keep=self._keep)

    def _ask(self, path: str, tree: str, read: Callable[[JsonObject], T], *, largest_bytes: int = LARGEST_ANSWER) -> T:
        request = HttpRequest(path=f"{path}api/json", query={"tree": tree}, largest_bytes=largest_bytes)
        return self._in_time().ask(request, read)

    def _in_time(self) -> HttpClient:
        if self._end is None:
            return self._http
        left = self._end - time.monotonic()
        if left < SHORTEST_TRY_SECONDS:
            raise JenkinsUnavailable(
                f"{self.url} took too long for the questions before this: see how Jenkins is doing"
            )
        policy = self._http.policy
        return self._http.with_policy(
            replace(
                policy,
                total_seconds=min(policy.total_seconds, left),
                answer_seconds=min(policy.answer_seconds, left),
            )
        )


class JenkinsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Jenkins, for Dagster: connects when asked, with a pipeline's settings."""

    def connect(self, settings: JenkinsSettings, *, project: str | None) -> Jenkins:
        """A client for these settings; close it, or use it as a context manager.

        Args:
            settings: of the pipeline.
            project: MLPROJECT_URI, if set: of several repositories in a build, the one whose commit counts.

        Raises:
            SettingsError: the address or the certificate is wrong.
        """
        return Jenkins(settings, project=project)


def _part(items: Sequence[object], start: int, stop: int) -> Sequence[object]:
    """These builds of a list; of a server that does not know ranges, it holds all of them, in any order."""
    if len(items) <= stop - start:
        return items
    return sorted(items, key=_number, reverse=True)[start:stop]


def _is_reference(item: object) -> bool:
    """Whether it only names a build, as the lists of a page do that was asked for without `tree=`."""
    return isinstance(item, dict) and "number" in item and "timestamp" not in item


def _number(item: object) -> int:
    number = item.get("number") if isinstance(item, dict) else None
    return number if isinstance(number, int) else 0


def _joined(newer: BuildPage, older: BuildPage) -> tuple[Build | UnreadableBuild, ...]:
    """The builds of two pages; one that moved to the second meanwhile, because another was added, once."""
    known = {build.number for build in newer.builds}
    return (*newer.builds, *(build for build in older.builds if build.number not in known))


def _job_path(job: str) -> str:
    return "".join(f"job/{quote(segment, safe='')}/" for segment in job.split("/"))


def _queue_item(answer: HttpAnswer) -> int | None:
    item = re.search(r"/queue/item/(\d{1,18})(?!\d)", answer.headers.get("Location", ""), re.ASCII)
    return int(item[1]) if item else None
