"""Every way in which Jenkins says no, as one sentence that names the setting to change."""

from __future__ import annotations

from urllib.parse import urlsplit

from orchestrator.errors import (
    JenkinsBadAnswer,
    JenkinsError,
    JenkinsNotFound,
    JenkinsRefused,
    JenkinsTooLarge,
    JenkinsUnavailable,
)
from orchestrator.resources.http import HttpFault, Problem

_KINDS: dict[Problem, type[JenkinsError]] = {
    Problem.UNREACHABLE: JenkinsUnavailable,
    Problem.SILENT: JenkinsUnavailable,
    Problem.SLOW: JenkinsUnavailable,
    Problem.UNWELL: JenkinsUnavailable,
    Problem.UNTRUSTED: JenkinsUnavailable,
    Problem.CLIENT_CERTIFICATE: JenkinsRefused,
    Problem.UNREADABLE: JenkinsUnavailable,
    Problem.WEB_PAGE: JenkinsUnavailable,
    Problem.LOGIN_PAGE: JenkinsRefused,
    Problem.LOGIN_REDIRECT: JenkinsRefused,
    Problem.UNAUTHORIZED: JenkinsRefused,
    Problem.FORBIDDEN: JenkinsRefused,
    Problem.NOT_FOUND: JenkinsNotFound,
    Problem.TOO_LARGE: JenkinsTooLarge,
    Problem.TOO_DEEP: JenkinsTooLarge,
}


def explain(fault: HttpFault, *, user: str) -> JenkinsError:
    """The error for a request that did not get what was asked for.

    Args:
        fault: what went wrong.
        user: JENKINS_USER.
    """
    return _KINDS.get(fault.problem, JenkinsBadAnswer)(_sentence(fault, user))


def _sentence(fault: HttpFault, user: str) -> str:
    url, status = fault.url, fault.answer.status if fault.answer else 0
    match fault.problem:
        case Problem.UNREACHABLE:
            return f"no connection to {url} ({fault.detail}): is Jenkins up, and JENKINS_URL right?"
        case Problem.SILENT:
            return f"no answer from {url} in time: is Jenkins up, and JENKINS_URL reachable from here?"
        case Problem.SLOW:
            return f"no whole answer from {url} in time: see how Jenkins is doing"
        case Problem.UNWELL:
            return f"{status} from {url}: Jenkins is overloaded, starting or down; its log says more"
        case Problem.UNTRUSTED:
            return (
                f"no secure connection to {url} ({fault.detail}): when Jenkins' certificate is signed privately, "
                "set JENKINS_CA_BUNDLE to a PEM file with its CA; else check JENKINS_URL"
            )
        case Problem.CLIENT_CERTIFICATE:
            return (
                f"no secure connection to {url} ({fault.detail}): if it asks for client certificates, set JENKINS_URL "
                "to an address of Jenkins that takes its users and API tokens without"
            )
        case Problem.UNREADABLE:
            return f"{url} was not asked ({fault.detail}): put JENKINS_CA_BUNDLE right"
        case Problem.NOT_HTTP:
            return f"{url} gave an answer that is no HTTP ({fault.detail}): is JENKINS_URL a Jenkins?"
        case Problem.TOO_LARGE:
            return f"{url} answered with {fault.detail}: is JENKINS_URL a Jenkins?"
        case Problem.TOO_DEEP:
            return f"{url} answered with JSON that is nested too deep: is JENKINS_URL a Jenkins?"
        case Problem.LOGIN_REDIRECT:
            return (
                f"{status} from {url}: Jenkins redirects to a login page, {fault.detail}: JENKINS_USER/JENKINS_TOKEN "
                "rejected, or a proxy that asks for a login; make an API token in Jenkins and set both"
            )
        case Problem.MOVED:
            return f"{status} from {url}: Jenkins redirects to {_moved(url, fault.detail)}"
        case Problem.UNAUTHORIZED:
            return (
                f"401 from {url}: JENKINS_USER/JENKINS_TOKEN rejected; make an API token in Jenkins "
                "(user > Security > API Token) and set both"
            )
        case Problem.FORBIDDEN:
            return (
                f"403 from {url}: user {user!r} may not do this; grant Overall/Read and Job/Read "
                "(and Job/Build to start builds), or set JENKINS_USER and JENKINS_TOKEN of one who may"
            )
        case Problem.NOT_FOUND:
            return (
                f"404 from {url}: not there (any more), or hidden from user {user!r}, because Jenkins hides what one "
                "may not read; check JENKINS_URL, JENKINS_JOB_NAME (folders as in team/project) and the permissions"
            )
        case Problem.REJECTED:
            return (
                f"{status} from {url}: Jenkins does not accept this request; open the address in a browser to see why"
            )
        case Problem.LOGIN_PAGE:
            return (
                f"{url} answered with a login page: JENKINS_USER/JENKINS_TOKEN do not get past it; "
                "let API tokens through the proxy in front of Jenkins, or set JENKINS_URL to Jenkins itself"
            )
        case _:
            return (
                f"{url} answered with {_content(fault)} where a JSON object was expected: JENKINS_URL must be "
                "Jenkins' own address, with its path such as /jenkins/, and no proxy's page may stand in front of it"
            )


def _content(fault: HttpFault) -> str:
    if fault.problem is Problem.WEB_PAGE:
        return "a web page (HTML)"
    if fault.problem is Problem.OTHER_SHAPE:
        return "JSON of another shape"
    return "broken JSON" if fault.answer and fault.answer.body.strip() else "nothing"


def _moved(url: str, place: str) -> str:
    asked, target = urlsplit(url), urlsplit(place)
    if target.hostname == asked.hostname and target.scheme != asked.scheme:
        return f"{target.scheme}: set JENKINS_URL to the {target.scheme}:// address"
    if target.hostname != asked.hostname:
        return (
            f"another host, {place}: if that asks for a login, let API tokens through the proxy in front of Jenkins; "
            "if Jenkins has moved there, set JENKINS_URL to its new address"
        )
    return f"{place}: set JENKINS_URL to the address (and path) that Jenkins really has"
