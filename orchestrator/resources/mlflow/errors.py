"""Every way in which MLflow says no, as one sentence that names the setting to change."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from orchestrator.errors import (
    MlflowError,
    MlflowNotFound,
    MlflowRefused,
    MlflowRejected,
    MlflowTooLarge,
    MlflowUnavailable,
)
from orchestrator.resources.http import HttpAnswer, HttpFault, Problem

CUT_OFF = (MlflowUnavailable, MlflowRefused)
"""Nothing at all can be asked: what is asked next fails as well, and all of it may succeed later."""

_CERTIFICATE = (
    "if it asks for a client certificate, set MLFLOW_TRACKING_CLIENT_CERT_PATH to a PEM file with one that it accepts, "
    "and its key"
)
_NOT_MLFLOW = "MLFLOW_TRACKING_URI is not the address of an MLflow server"

_KINDS: dict[Problem, type[MlflowError]] = {
    Problem.UNREACHABLE: MlflowUnavailable,
    Problem.SILENT: MlflowUnavailable,
    Problem.SLOW: MlflowUnavailable,
    Problem.UNWELL: MlflowUnavailable,
    Problem.WEB_PAGE: MlflowUnavailable,
    Problem.NOT_JSON: MlflowUnavailable,
    Problem.CREDENTIALS_AWAY: MlflowUnavailable,
    Problem.CLIENT_CERTIFICATE: MlflowRefused,
    Problem.UNREADABLE: MlflowRefused,
    Problem.NO_CREDENTIALS: MlflowRefused,
    Problem.LOGIN_PAGE: MlflowRefused,
    Problem.LOGIN_REDIRECT: MlflowRefused,
    Problem.UNAUTHORIZED: MlflowRefused,
    Problem.FORBIDDEN: MlflowRefused,
    Problem.TOO_LARGE: MlflowTooLarge,
    Problem.TOO_DEEP: MlflowTooLarge,
}


_LOGIN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to a login that may read and "
    "write the experiment"
)


def explain(fault: HttpFault, *, uri: str, permission: str | None = None) -> MlflowError:
    """The error for a request that did not get what was asked for.

    Args:
        fault: what went wrong.
        uri: the server's address, without a login.
        permission: what AWS's credentials lack when requests that are signed with them are refused, as one clause;
            None: requests are not signed.
    """
    kind = _KINDS.get(fault.problem, MlflowError)
    if fault.problem in (Problem.NOT_FOUND, Problem.REJECTED) and _is_mlflows(fault.answer):
        kind = MlflowNotFound if fault.problem is Problem.NOT_FOUND else MlflowRejected
    sentence = _sentence(fault, uri, _LOGIN if permission is None else _signed(permission))
    if fault.problem is Problem.CREDENTIALS_AWAY:
        return kind(sentence)
    if fault.policy is not None and fault.problem.transient:
        sentence += (
            f"; gave up after {fault.policy.total_seconds:g} s: "
            "see whether the server runs, and whether MLFLOW_TRACKING_URI is its address"
        )
    return kind(sentence)


def longest_allowed(error: MlflowError) -> int | None:
    """How long a value may be that was too long, as far as the server says so.

    What it says: `exceeded length limit of 500` (MLflow 1 and 2), `exceeds the maximum length of 6000 characters`.

    Args:
        error: what `explain` made of its answer.
    """
    fault = error.__cause__
    answer = fault.answer if isinstance(fault, HttpFault) else None
    message = (answer.json_object() or {}).get("message") if answer else None
    # The last one, because the value is quoted before it.
    limits = (
        re.findall(r"(?:limit|length|maximum)(?: size)? of (\d{1,6})\b", message) if isinstance(message, str) else []
    )
    return int(limits[-1]) if limits else None


def _signed(permission: str) -> str:
    return f"the request is signed with the orchestrator's AWS credentials: {permission}"


def _sentence(fault: HttpFault, uri: str, advice: str) -> str:
    match fault.problem:
        case Problem.UNREACHABLE | Problem.SILENT:
            return f"MLflow at {uri} does not answer ({fault.detail})"
        case Problem.SLOW:
            return f"MLflow at {uri} does not answer ({fault.detail} in the middle of an answer)"
        case Problem.UNWELL:
            return f"MLflow at {uri} is not well ({_reply(fault.answer)})"
        case Problem.UNTRUSTED:
            return (
                f"the certificate of MLflow at {uri} is not trusted ({fault.detail}): "
                "set MLFLOW_TRACKING_SERVER_CERT_PATH to a PEM file with its CA"
            )
        case Problem.CLIENT_CERTIFICATE:
            return f"MLflow at {uri} ends the connection ({fault.detail}): {_CERTIFICATE}"
        case Problem.REJECTED if fault.answer and b"SSL certificate" in fault.answer.body[:2000]:  # nginx
            return f"{_reply(fault.answer)} from MLflow at {uri}: {_CERTIFICATE}"
        case Problem.UNREADABLE:
            return (
                f"MLflow at {uri} was not asked ({fault.detail}): put MLFLOW_TRACKING_SERVER_CERT_PATH or "
                "MLFLOW_TRACKING_CLIENT_CERT_PATH right"
            )
        case Problem.NO_CREDENTIALS | Problem.CREDENTIALS_AWAY:
            return (
                f"MLflow at {uri} was not asked, because there are no AWS credentials to sign requests with "
                f"({fault.detail}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or this machine's "
                "role"
            )
        case Problem.NOT_HTTP:
            return f"{uri} gave an answer that is no HTTP ({fault.detail}): {_NOT_MLFLOW}"
        case Problem.TOO_LARGE:
            return f"{uri} answered with {fault.detail}: {_NOT_MLFLOW}, or something very large was logged there"
        case Problem.TOO_DEEP:
            return f"{uri} answered with JSON that is nested too deep: {_NOT_MLFLOW}"
        case Problem.LOGIN_REDIRECT:
            return (
                f"MLflow at {uri} redirects to {fault.detail}: if that is a login page, set MLFLOW_TRACKING_TOKEN; "
                "if the server has moved, correct MLFLOW_TRACKING_URI"
            )
        case Problem.MOVED:
            return f"MLflow at {uri} redirects to {fault.detail}: set MLFLOW_TRACKING_URI to the address that it has"
        case Problem.LOGIN_PAGE:
            return (
                f"{uri} answered with a login page: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, to a login that gets past it, or MLFLOW_TRACKING_URI to MLflow itself"
            )
        case Problem.UNAUTHORIZED | Problem.FORBIDDEN:
            return _refusal(fault, uri, advice)
        case Problem.NOT_FOUND if _is_mlflows(fault.answer):
            return f"{_reply(fault.answer)} (MLflow at {uri})"
        case Problem.REJECTED if _is_mlflows(fault.answer):
            return f"MLflow at {uri} rejected the request ({_reply(fault.answer)})"
        case Problem.NOT_FOUND | Problem.REJECTED:
            return f"{uri} has no MLflow REST API ({_reply(fault.answer)}): {_NOT_MLFLOW}{_of_prefix(uri)}"
        case Problem.OTHER_SHAPE:
            return f"{uri} answered with JSON of another shape than MLflow's ({fault.detail}): {_NOT_MLFLOW}"
        case _:
            content_type = fault.answer.headers.get("Content-Type") if fault.answer else None
            return (
                f"{uri} answered with {content_type or 'something'} instead of MLflow's JSON, so it is not an "
                "MLflow server, or something in front of it stands in the way"
            )


def _refusal(fault: HttpFault, uri: str, advice: str) -> str:
    body = fault.answer.body[:500] if fault.answer else b""
    if fault.problem is Problem.FORBIDDEN and b"Invalid Host header" in body:
        # https://mlflow.org/docs/latest/self-hosting/security/network/
        host = urlsplit(uri).netloc
        return (
            f"MLflow at {uri} does not know itself by the name {host}: start that server with "
            f"--allowed-hosts {host} (or MLFLOW_SERVER_ALLOWED_HOSTS)"
        )
    return f"{_reply(fault.answer)} from MLflow at {uri}: {advice}"


def _of_prefix(uri: str) -> str:
    """What may be wrong with an address that has a path: https://github.com/mlflow/mlflow/pull/22159."""
    parts = urlsplit(uri)
    if not parts.path:
        return ""
    return (
        "; MLflow before 3.12 serves its API without --static-prefix, its pages with it: if that server has one, set "
        f"MLFLOW_TRACKING_URI={parts.scheme}://{parts.netloc} and MLFLOW_UI_URL={uri}"
    )


def _reply(answer: HttpAnswer | None) -> str:
    """Status and message of an answer."""
    if answer is None:
        return ""
    data = answer.json_object() or {}
    message = data.get("message") or data.get("Message")  # MLflow's, or AWS's
    return f"{answer.status_line}: {str(message)[:500]}" if message else answer.status_line


def _is_mlflows(answer: HttpAnswer | None) -> bool:
    """Whether MLflow itself speaks: a proxy's errors are pages, or JSON without MLflow's code."""
    return answer is not None and "error_code" in (answer.json_object() or {})
