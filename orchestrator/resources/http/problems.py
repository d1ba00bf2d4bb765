"""What an answer, or the lack of one, means: decided here, once for every server."""

from __future__ import annotations

import email.utils
import enum
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from orchestrator.resources.http.bounded import TooLargeError
from orchestrator.resources.retry import RetryPolicy

JsonObject = Mapping[str, Any]


class Problem(enum.Enum):
    """What is wrong with an answer, or why there is none."""

    UNREACHABLE = "no connection, or one that broke"
    SILENT = "the answer did not begin in time"
    SLOW = "the answer did not end in time"
    UNWELL = "408, 429 or 5xx"
    WEB_PAGE = "a web page instead of JSON: a proxy's, while the server behind it restarts"
    NOT_JSON = "nothing, or text that is not JSON"
    WRONG_ADDRESS = "an address that cannot be one"
    UNTRUSTED = "a certificate that is not trusted"
    CLIENT_CERTIFICATE = "the server refuses our client certificate, or to go on without one"
    UNREADABLE = "a file of certificates that cannot be read (any more)"
    NO_CREDENTIALS = "no credentials of AWS to sign with"
    CREDENTIALS_AWAY = "credentials of AWS that cannot be renewed now"
    NOT_HTTP = "an answer that is not HTTP"
    TOO_LARGE = "an answer without end"
    TOO_DEEP = "JSON that is nested too deep"
    LOGIN_PAGE = "a web page that asks for a login"
    LOGIN_REDIRECT = "a redirect to a login page"
    MOVED = "a redirect to another address"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    REJECTED = "any other 4xx, or a request that the server does not know: 501, 505"
    OTHER_SHAPE = "JSON of another shape"

    @property
    def transient(self) -> bool:
        """Whether another try may succeed."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {Problem.UNREACHABLE, Problem.SILENT, Problem.SLOW, Problem.UNWELL, Problem.WEB_PAGE, Problem.NOT_JSON}
    | {Problem.CREDENTIALS_AWAY}
)

_REFUSED_CERTIFICATE = re.compile(
    r"(?:SSLV3|TLSV1|TLSV13)_ALERT_(?:CERTIFICATE_\w+|BAD_CERTIFICATE\w*|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA"
    r"|ACCESS_DENIED|HANDSHAKE_FAILURE)"
)
"""What a server says that asks for a client certificate; the last one also when no cipher suits it."""

_STATUSES = {
    408: Problem.UNWELL,
    429: Problem.UNWELL,
    401: Problem.UNAUTHORIZED,
    403: Problem.FORBIDDEN,
    404: Problem.NOT_FOUND,
    501: Problem.REJECTED,
    505: Problem.REJECTED,
}

# The first that fits counts: several of these classes inherit from several others.
_FOREIGN_ERRORS: tuple[tuple[type[Exception], Problem], ...] = (
    (requests.exceptions.InvalidURL, Problem.WRONG_ADDRESS),
    (urllib3.exceptions.LocationValueError, Problem.WRONG_ADDRESS),
    (requests.Timeout, Problem.SILENT),
    (requests.exceptions.ConnectionError, Problem.UNREACHABLE),
    (requests.exceptions.ChunkedEncodingError, Problem.UNREACHABLE),
    (requests.RequestException, Problem.NOT_HTTP),
    (urllib3.exceptions.HTTPError, Problem.NOT_HTTP),
)


@dataclass(frozen=True)
class HttpAnswer:
    """What came back.

    Attributes:
        url: what was asked, without its query.
        status: the HTTP status.
        headers: by name, in any case.
        body: all of it, unpacked.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def status_line(self) -> str:
        """`404 Not Found`, for sentences."""
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)

    def json_object(self) -> JsonObject | None:
        """The body, if it is a JSON object."""
        try:
            data = read_json(self.body)
        except (ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None


def read_json(body: bytes) -> Any:
    """Read JSON, and do not fail as a whole for what is odd in a part of it.

    Raw control characters in a text are let in, bytes that are no UTF-8 are replaced, and a whole number of more than
    400 digits is infinite.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    return json.loads(body.decode("utf-8-sig", errors="replace"), strict=False, parse_int=_whole_number)


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= 400 else float(digits)


class HttpFault(Exception):
    """A request that did not get what was asked for; the clients make a sentence of it.

    Attributes:
        problem: what is wrong.
        url: what was asked, without its query.
        detail: the operating system's own words, an address that is redirected to, a line of Python; may be empty.
        answer: the answer, if there was one.
        retry_after_seconds: how long the server asks us to wait; None when it does not.
        policy: how patient we were.
    """

    def __init__(self, problem: Problem, url: str, *, detail: str = "", answer: HttpAnswer | None = None) -> None:
        super().__init__(f"{problem.value}: {url} {detail}".rstrip())
        self.problem = problem
        self.url = url
        self.detail = detail
        self.answer = answer
        self.retry_after_seconds = retry_after(answer.headers.get("Retry-After")) if answer else None
        self.policy: RetryPolicy | None = None


FOREIGN_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, TooLargeError)
SHAPE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)


def fault_of(error: Exception, url: str, *, begun: bool = False) -> HttpFault:
    """What an exception of the libraries means.

    Args:
        error: the exception.
        url: what was asked.
        begun: whether the answer had begun by then.
    """
    if isinstance(error, TooLargeError):
        return HttpFault(Problem.TOO_LARGE, url, detail=f"more than {error.limit // 2**20} MB")
    cause = _root(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return HttpFault(Problem.UNTRUSTED, url, detail=cause.verify_message)
    if isinstance(cause, ssl.SSLError) and _REFUSED_CERTIFICATE.fullmatch(cause.reason or ""):
        return HttpFault(Problem.CLIENT_CERTIFICATE, url, detail=(cause.reason or "").replace("_", " ").lower())
    detail = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    if begun and isinstance(cause, TimeoutError):
        return HttpFault(Problem.SLOW, url, detail=detail)
    problem = next(problem for kind, problem in _FOREIGN_ERRORS if isinstance(error, kind))
    return HttpFault(problem, url, detail=detail)


def _root(error: Exception) -> BaseException:
    """The operating system's own error below those of the libraries.

    No deeper: below it may be whatever the caller was handling when it called us.
    """
    cause: BaseException = error
    while isinstance(cause, (requests.RequestException, urllib3.exceptions.HTTPError)):
        wrapped = cause.args[0] if cause.args else None  # urllib3 hands some on without raising them
        deeper = cause.__cause__ or cause.__context__ or (wrapped if isinstance(wrapped, OSError) else None)
        if deeper is None:
            break
        cause = deeper
    return cause


def require_success(answer: HttpAnswer) -> None:
    """Raise what a status other than 2xx means."""
    status = answer.status
    if status in _STATUSES:
        raise HttpFault(_STATUSES[status], answer.url, answer=answer)
    if status >= 500:
        raise HttpFault(Problem.UNWELL, answer.url, answer=answer)
    if status >= 400:
        raise HttpFault(Problem.REJECTED, answer.url, answer=answer)
    if status >= 300:
        place = redirect_target(answer.url, answer.headers.get("Location", ""))
        problem = Problem.LOGIN_REDIRECT if _is_login(answer.url, place) else Problem.MOVED
        raise HttpFault(problem, answer.url, detail=place, answer=answer)


_LOGIN_WORDS = frozenset(
    [
        "login",
        "signin",
        "logon",
        "auth",
        "oauth",
        "oauth2",
        "openid",
        "oidc",
        "saml",
        "saml2",
        "sso",
        "adfs",
        "realms",
        "authorize",
        "accounts",
        "idp",
        "cas",
        "securityrealm",
    ]
)


def _is_login(asked: str, place: str) -> bool:
    """Whether a redirect leads to a login: by a word that stands in it and not in what was asked."""
    words = [
        set(re.findall(r"[a-z0-9]+", re.sub(r"(sign|log)-(in|on)", r"\1\2", f"{parts.hostname} {parts.path}".lower())))
        for parts in (urlsplit(asked), urlsplit(place))
    ]
    return any(word in _LOGIN_WORDS or word.endswith("login") for word in words[1] - words[0])


def problem_of_body(answer: HttpAnswer) -> Problem:
    """What a body means that is not the JSON object that was asked for."""
    body = answer.body[:65536].lstrip()
    if body.startswith(b"<") or "html" in answer.headers.get("Content-Type", "").lower():
        login = re.search(rb"j_spring_security_check|j_username|type=.password", body)
        return Problem.LOGIN_PAGE if login else Problem.WEB_PAGE
    try:
        read_json(answer.body)
    except ValueError:
        return Problem.NOT_JSON
    except RecursionError:
        return Problem.TOO_DEEP
    return Problem.OTHER_SHAPE


def redirect_target(url: str, location: str) -> str:
    """Where a redirect leads, without login, query and fragment; `url` itself if it leads nowhere.

    Args:
        url: what was asked.
        location: the header of the answer.
    """
    try:
        target = urlsplit(urljoin(url, location))
        port = f":{target.port}" if target.port is not None else ""
    except ValueError:
        return url
    host = f"[{target.hostname}]" if ":" in (target.hostname or "") else target.hostname or ""
    return f"{target.scheme}://{host}{port}{target.path}"


def retry_after(header: str | None) -> float | None:
    """Seconds from now of a `Retry-After` header, a number or a date; None for anything else.

    https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, seconds)
