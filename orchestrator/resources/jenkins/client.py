"""The Jenkins client: builds of plain and multibranch jobs, each question one small request."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import dagster as dg
import requests
import tenacity

from orchestrator.errors import JenkinsBadAnswer, JenkinsNotFound, JenkinsUnavailable, SettingsError
from orchestrator.resources.jenkins import errors as explain
from orchestrator.resources.jenkins.answers import (
    BRIEF_FIELDS,
    BUILD_FIELDS,
    Build,
    Head,
    build_of,
    check_order,
    head_of,
    listed,
)
from orchestrator.resources.jenkins.errors import Answer, TryAgain
from orchestrator.settings.groups import JenkinsSettings
from orchestrator.settings.source import Settings

CONNECT_SECONDS = 4.0
READ_SECONDS = 12.0
RETRY_SECONDS = 15.0
"""No attempt starts later than this after the first, so that one question takes about 30 s at the worst; a
sensor tick, which asks none after 15 s, stays under Dagster's 60 s."""
LONGEST_WAIT_SECONDS = 5.0
LARGEST_ANSWER = 64 * 2**20


class Jenkins:
    """Asks one Jenkins server, with retries, and explains what goes wrong.

    Follows https://www.jenkins.io/doc/book/using/remote-access-api/. Addresses are made from JENKINS_URL
    alone: those that Jenkins reports are for people, and often lead nowhere from here.
    """

    def __init__(self, settings: JenkinsSettings, *, project: str | None = None) -> None:
        """Prepare a session; nothing is asked yet.

        Args:
            settings: address, user, token and CA.
            project: MLPROJECT_URI, if set: tells the project's own checkout from a pipeline library's.

        Raises:
            SettingsError: JENKINS_URL is no http(s) address, or JENKINS_CA_BUNDLE no file.
        """
        address = urlsplit(settings.url.strip())
        if address.scheme not in ("http", "https") or not address.hostname:
            raise SettingsError(
                "JENKINS_URL is no http:// or https:// address: write it as in https://jenkins.example.com/"
            )
        if settings.ca_bundle and not settings.ca_bundle.is_file():
            raise SettingsError(f"JENKINS_CA_BUNDLE={str(settings.ca_bundle)!r}: there is no such file")
        host = address.netloc.rpartition("@")[2]
        self.url = f"{address.scheme}://{host}{address.path.rstrip('/')}/"
        self.job = job_name(settings.job)
        self._user = settings.user
        self._project = project
        self._verify = str(settings.ca_bundle) if settings.ca_bundle else True
        self._session = requests.Session()
        token = settings.token.get_secret_value().strip()
        self._session.auth = requests.auth.HTTPBasicAuth(settings.user.encode(), token.encode())
        self._session.headers["Accept"] = "application/json"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def heads(self, job: str, *, newest: int, per_branch: int) -> tuple[Head, ...]:
        """The top of a job's history, or of each branch of a multibranch project, in one request.

        Args:
            job: full name.
            newest: how many builds of a plain job.
            per_branch: how many builds of each branch.

        Raises:
            JenkinsError: Jenkins did not give it.
        """
        one = f"nextBuildNumber,allBuilds[{BRIEF_FIELDS}]"
        path = _job_path(job)
        answer = self._json(path, tree=f"{one}{{0,{newest}}},jobs[name,{one}{{0,{per_branch}}}]")
        where = self.url + path
        if "allBuilds" in answer:
            return (head_of(answer, job=job, asked=newest, where=where),)
        children = [child for child in listed(answer, "jobs", where) if isinstance(child, dict)]
        branches = [child for child in children if "allBuilds" in child]
        if children and not branches:
            inside = ", ".join(f"{job}/{child.get('name')}" for child in children[:3])
            raise JenkinsBadAnswer(
                f"{where} is a folder without a job of its own: set JENKINS_JOB_NAME to one in it ({inside}, ...)"
            )
        return tuple(
            head_of(child, job=f"{job}/{child.get('name')}", asked=per_branch, where=where) for child in branches
        )

    def builds(self, job: str, *, start: int, stop: int) -> tuple[Build, ...]:
        """Builds by their place in the history, newest first: from ``start`` up to, without, ``stop``.

        Raises:
            JenkinsError: Jenkins did not give them.
        """
        path = _job_path(job)
        answer = self._json(path, tree=f"allBuilds[{BUILD_FIELDS}]{{{start},{stop}}}")
        page = tuple(self._build(item, job=job) for item in listed(answer, "allBuilds", self.url + path))
        check_order(page, self.url + path)
        return page

    def build(self, job: str, number: int, *, patience_seconds: float | None = None) -> Build:
        """One build.

        Args:
            job: full name.
            number: of the build.
            patience_seconds: how long an outage is ridden out; default: for four attempts, and RETRY_SECONDS.

        Raises:
            JenkinsNotFound: there is no such build (any more).
            JenkinsError: Jenkins did not give it.
        """
        path = f"{_job_path(job)}{number}/"
        return self._build(self._json(path, tree=BUILD_FIELDS, patience_seconds=patience_seconds), job=job)

    def start_build(self, job: str, parameters: Mapping[str, str] | None = None) -> int:
        """Ask for a build; return the number of its queue item, for :meth:`queued_build_number`.

        Never repeated after a failure: the first request may have been heard.

        Args:
            job: full name.
            parameters: build parameters, for a job that has some.

        Raises:
            JenkinsError: Jenkins did not accept it.
        """
        headers = self._crumb()
        path = _job_path(job) + ("buildWithParameters" if parameters else "build")
        answer = self._send("POST", path, data=dict(parameters or {}), headers=headers)
        item = re.search(r"/queue/item/(\d+)", answer.headers.get("Location", ""))
        if not item:
            raise JenkinsBadAnswer(
                f"{self.url}{path} answered {answer.status} without a queue item: look at the job's page"
            )
        return int(item[1])

    def queued_build_number(self, item: int) -> int | None:
        """The number of the build that a queue item became; None while it waits.

        Raises:
            JenkinsNotFound: it was cancelled, or left the queue more than five minutes ago.
            JenkinsError: Jenkins did not say.
        """
        answer = self._json(f"queue/item/{item}/", tree="cancelled,executable[number]")
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
            answer = self._json("crumbIssuer/", tree="crumb,crumbRequestField")
        except JenkinsNotFound:
            return {}
        return {str(answer.get("crumbRequestField", "Jenkins-Crumb")): str(answer.get("crumb", ""))}

    def _build(self, data: object, *, job: str) -> Build:
        where = self.url + _job_path(job)
        number = data.get("number") if isinstance(data, dict) else None
        return build_of(data, job=job, url=f"{where}{number}/", project=self._project, where=where)

    def _json(self, path: str, *, tree: str, patience_seconds: float | None = None) -> dict[str, Any]:
        hasty = tenacity.stop_after_attempt(4) | tenacity.stop_before_delay(RETRY_SECONDS)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TryAgain),
            stop=hasty if patience_seconds is None else tenacity.stop_before_delay(patience_seconds),
            wait=_wait,
            reraise=True,
        )
        answer = retrying(self._send, "GET", f"{path}api/json", params={"tree": tree})
        try:
            data = json.loads(answer.body)
        except ValueError:
            raise explain.not_json(answer) from None
        if not isinstance(data, dict):
            raise explain.not_json(answer)
        return data

    def _send(self, method: str, path: str, **options: Any) -> Answer:
        url = self.url + path
        try:
            with self._session.request(
                method,
                url,
                allow_redirects=False,
                stream=True,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                verify=self._verify,
                **options,
            ) as response:
                answer = Answer(url, response.status_code, response.headers, _body(response, url))
        except requests.exceptions.SSLError as error:
            raise explain.untrusted(error, url) from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise explain.unreachable(error, url) from error
        except requests.RequestException as error:
            raise JenkinsBadAnswer(
                f"{url} gave an answer that is no HTTP ({type(error).__name__}): is JENKINS_URL a Jenkins?"
            ) from error
        explain.refuse(answer, user=self._user)
        return answer


class JenkinsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Jenkins, for Dagster: connects when asked, with the settings of that moment."""

    def connect(self, settings: Settings) -> Jenkins:
        """A client for these settings; close it, or use it as a context manager.

        Raises:
            SettingsError: a Jenkins setting is missing or wrong.
        """
        return Jenkins(settings.read(JenkinsSettings), project=settings.raw("MLPROJECT_URI"))


def job_name(text: str) -> str:
    """The full name of a job: ``team/project``, also given as its address or with ``/job/`` in between.

    Args:
        text: JENKINS_JOB_NAME as users write it.

    Raises:
        SettingsError: it names no job.
    """
    path = urlsplit(text.strip()).path if "://" in text else text.strip()
    if "://" in text:
        path = path[max(path.find("/job/"), 0) :]
    segments = [segment for segment in path.split("/") if segment]
    if len(segments) % 2 == 0 and segments and all(word == "job" for word in segments[::2]):
        segments = [unquote(segment) for segment in segments[1::2]]
    if not segments:
        raise SettingsError(f"JENKINS_JOB_NAME={text!r} names no job: write it as in team/project")
    return "/".join(segments)


def _job_path(job: str) -> str:
    return "".join(f"job/{quote(segment, safe='')}/" for segment in job.split("/"))


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TryAgain) and error.after_seconds is not None:
        return min(error.after_seconds, LONGEST_WAIT_SECONDS)
    return tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_SECONDS)(state)


def _body(response: requests.Response, url: str) -> bytes:
    """The whole body, within bounds of time and size, however slowly it trickles in."""
    until = time.monotonic() + READ_SECONDS
    body = bytearray()
    for chunk in response.iter_content(2**16):
        body += chunk
        if time.monotonic() > until:
            raise JenkinsUnavailable(f"{url} was not read in {READ_SECONDS:g} s: see how Jenkins is doing")
        if len(body) > LARGEST_ANSWER:
            raise JenkinsBadAnswer(f"{url} answered with more than 64 MB: is JENKINS_URL a Jenkins?")
    return bytes(body)
