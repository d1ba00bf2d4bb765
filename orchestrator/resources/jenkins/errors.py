"""Every way in which Jenkins says no, as one sentence that names the setting to change."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests

from orchestrator.errors import (
    JenkinsBadAnswer,
    JenkinsError,
    JenkinsNotFound,
    JenkinsRefused,
    JenkinsUnavailable,
)


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        url: what was asked, without its query.
        status: the HTTP status.
        headers: by name, in any case.
        body: all of it.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class TryAgain(JenkinsUnavailable):
    """What may be over in a moment; ``after_seconds`` is Jenkins' own word for how long."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds


def refuse(answer: Answer, *, user: str) -> None:
    """Raise what a status other than 2xx means.

    Args:
        answer: Jenkins' answer.
        user: JENKINS_USER.

    Raises:
        TryAgain: 429 or 5xx.
        JenkinsError: any other status outside 2xx.
    """
    status, url = answer.status, answer.url
    if status == 429 or status >= 500:
        raise TryAgain(
            f"{status} from {url}: Jenkins is overloaded, starting or down; its log says more",
            _retry_after(answer.headers.get("Retry-After")),
        )
    if 300 <= status < 400 and "/queue/item/" not in answer.headers.get("Location", ""):
        raise _redirected(answer)
    if status == 401:
        raise JenkinsRefused(
            f"401 from {url}: JENKINS_USER/JENKINS_TOKEN rejected; make an API token in Jenkins "
            f"(user > Security > API Token) and set both"
        )
    if status == 403:
        raise JenkinsRefused(
            f"403 from {url}: user {user!r} may not do this; grant Overall/Read and Job/Read "
            f"(and Job/Build to start builds), or set JENKINS_USER and JENKINS_TOKEN of one who may"
        )
    if status == 404:
        raise JenkinsNotFound(
            f"404 from {url}: not there (any more), or hidden from user {user!r}, for Jenkins hides what one may "
            f"not read; check JENKINS_URL, JENKINS_JOB_NAME (folders as in team/project) and the permissions"
        )
    if status >= 400:
        raise JenkinsBadAnswer(
            f"{status} from {url}: Jenkins does not accept this request; open the address in a browser to see why"
        )


def not_json(answer: Answer) -> JenkinsError:
    """The error for a body that is not the JSON object that was asked for."""
    body, url = answer.body[:512].lstrip().lower(), answer.url
    if body.startswith(b"<"):
        if re.search(rb"j_spring_security_check|j_username|type=.password", answer.body[:65536]):
            return JenkinsRefused(
                f"{url} answered with a login page: JENKINS_USER/JENKINS_TOKEN do not get past it; "
                f"let API tokens through the proxy in front of Jenkins, or set JENKINS_URL to Jenkins itself"
            )
        what = "a web page (HTML)"
    else:
        what = "JSON of another shape" if body.startswith(b"[") else "broken JSON" if body else "nothing"
    return JenkinsBadAnswer(
        f"{url} answered with {what} where a JSON object was expected: JENKINS_URL must be Jenkins' own address, "
        f"with its path such as /jenkins/, and no proxy's page may stand in front of it"
    )


def untrusted(error: requests.exceptions.SSLError, url: str) -> JenkinsError:
    """The error for a TLS connection that was not made; trying again would not help."""
    detail = re.search(r"certificate verify failed: ([^(\"']+)|\[SSL: (\w+)\]", str(error))
    reason = next((text.strip() for text in detail.groups() if text), "") if detail else ""
    return JenkinsUnavailable(
        f"no secure connection to {url}{f' ({reason})' if reason else ''}: when Jenkins' certificate is signed "
        f"privately, set JENKINS_CA_BUNDLE to a PEM file with its CA; else check JENKINS_URL"
    )


def unreachable(error: requests.RequestException, url: str) -> TryAgain:
    """The error for a connection that failed, broke or fell silent."""
    if isinstance(error, requests.Timeout):
        return TryAgain(f"no answer from {url} in time: is Jenkins up, and JENKINS_URL reachable from here?")
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) else "the connection broke"
    return TryAgain(f"no connection to {url} ({reason}): is Jenkins up, and JENKINS_URL right?")


def _redirected(answer: Answer) -> JenkinsError:
    target = urlsplit(urljoin(answer.url, answer.headers.get("Location", "")))
    asked = urlsplit(answer.url)
    place = f"{target.scheme}://{target.hostname or ''}{f':{target.port}' if target.port else ''}{target.path}"
    told = f"{answer.status} from {answer.url}: Jenkins redirects to"
    if re.search(r"login|securityrealm|oauth|saml|sso|signin", target.path.lower()):
        return JenkinsRefused(
            f"{told} a login page, {place}: JENKINS_USER/JENKINS_TOKEN rejected, or a proxy that asks for a login; "
            f"make an API token in Jenkins and set both"
        )
    if target.hostname == asked.hostname and target.scheme != asked.scheme:
        return JenkinsBadAnswer(f"{told} {target.scheme}: set JENKINS_URL to the {target.scheme}:// address")
    return JenkinsBadAnswer(f"{told} {place}: set JENKINS_URL to the address (and path) that Jenkins really has")


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
