"""The base of all HTTP clients: address, login, TLS, an answer bounded in time and size, retries, and one error map.

What a status, a web page or a silence means is decided here, once for every server. The clients add the
endpoints, and the sentences: they are told a `Problem` and say which setting to change.
"""

from __future__ import annotations

import copy
import email.utils
import enum
import http.client
import io
import json
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests
import requests.auth
import tenacity
import urllib3
import urllib3.connection

from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.resources.retry import RetryPolicy

LARGEST_ANSWER = 64 * 2**20
"""In bytes: of an answer as it is sent, and of its body as it is unpacked."""

SHORTEST_TRY_SECONDS = 1.0
"""A try at the end of our patience still gets this long."""

Method = Literal["GET", "POST"]
JsonObject = Mapping[str, Any]
T = TypeVar("T")
T1 = TypeVar("T1")
_log = logging.getLogger(__name__)


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
    NOT_HTTP = "an answer that is not HTTP"
    TOO_LARGE = "an answer without end"
    LOGIN_PAGE = "a web page that asks for a login"
    LOGIN_REDIRECT = "a redirect to a login page"
    MOVED = "a redirect to another address"
    UNAUTHORIZED = "401"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    REJECTED = "any other 4xx"
    OTHER_SHAPE = "JSON of another shape"

    @property
    def transient(self) -> bool:
        """Whether another try may succeed."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {Problem.UNREACHABLE, Problem.SILENT, Problem.SLOW, Problem.UNWELL, Problem.WEB_PAGE, Problem.NOT_JSON}
)

_STATUSES = {
    408: Problem.UNWELL,
    429: Problem.UNWELL,
    401: Problem.UNAUTHORIZED,
    403: Problem.FORBIDDEN,
    404: Problem.NOT_FOUND,
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
class Address:
    """The address of a server, without the login that may stand in it.

    Attributes:
        uri: safe to print; no slash at its end.
        username: from `https://username:password@host`, else None.
        password: likewise.
    """

    uri: str
    username: str | None
    password: str | None = field(repr=False)

    @classmethod
    def parse(cls, text: str, *, setting: str, example: str, why: str = "") -> Address:
        """Read the address of a server.

        Args:
            text: as users write it.
            setting: the setting that it comes from.
            example: what it may look like.
            why: what to add when it is not of HTTP.

        Raises:
            SettingsError: it is not the address of an HTTP server.
        """
        try:
            parts = urlsplit(text.strip())
            parts.port  # noqa: B018 - it is parsed, and found to be wrong, when it is read
        except ValueError:
            raise SettingsError(f"{setting} is not an address: write for example {example}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{setting} has to begin with http:// or https://, as in {example}{why}")
        if parts.query or parts.fragment:
            raise SettingsError(f"{setting} is the address of a page: leave out all from the # or ? on")
        host = parts.netloc.rpartition("@")[2]
        return cls(
            uri=urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


@dataclass(frozen=True, kw_only=True)
class HttpServer:
    """One server, and how we show it who we are.

    Attributes:
        address: of the server.
        setting: where the address comes from.
        auth: the login, if it takes one.
        ca_bundle: PEM file with the CA of its certificate; None: as of all the world.
        ca_setting: where that comes from.
    """

    address: Address
    setting: str
    auth: requests.auth.AuthBase | None
    ca_bundle: Path | None
    ca_setting: str


class BearerToken(requests.auth.AuthBase):
    """Shows a token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


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
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request, below the server's address.

    Attributes:
        method: GET or POST.
        path: without a slash in front.
        query: parameters of the address.
        form: fields of a form, to be posted.
        json: to be posted as JSON.
        headers: further headers.
        accepts: answers that are right whatever their status; by default none.
    """

    method: Method = "GET"
    path: str
    query: Mapping[str, str] | None = None
    form: Mapping[str, str] | None = None
    json: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    accepts: Callable[[HttpAnswer], bool] = lambda _: False


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


class Once(Protocol):
    """Sends a request once, within the time that is left."""

    def __call__(self, request: HttpRequest, read: Callable[[JsonObject], T]) -> T:
        """Return what `read` makes of the JSON object that answers it; see `HttpClient.ask`."""


class HttpClient:
    """A session with one server.

    Args:
        server: whom to ask.
        policy: how patient we are with it. An answer takes no longer than its `answer_seconds`, headers and body
            together, and however it trickles in. After the first try, no try gets more time than is left of
            `total_seconds`, and SHORTEST_TRY_SECONDS.
        explain: makes the client's own error of what went wrong.

    Raises:
        SettingsError: there is no such CA file.
    """

    def __init__(
        self, server: HttpServer, *, policy: RetryPolicy, explain: Callable[[HttpFault], OrchestratorError]
    ) -> None:
        if server.ca_bundle is not None and not server.ca_bundle.is_file():
            raise SettingsError(f"{server.ca_setting}: there is no file {server.ca_bundle}")
        self.policy = policy
        self._server = server
        self._explain = explain
        # Handed to each request, because REQUESTS_CA_BUNDLE would win over the session's own value.
        self._verify: str | bool = str(server.ca_bundle) if server.ca_bundle else True
        self._session = _Session()
        self._session.auth = server.auth
        self._session.headers["Accept"] = "application/json"
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _BoundedAdapter())

    @property
    def uri(self) -> str:
        """The server's address, without any login in it and without a slash at its end."""
        return self._server.address.uri

    def with_policy(self, policy: RetryPolicy) -> Self:
        """A client of the same session that is more or less patient."""
        client = copy.copy(self)
        client.policy = policy
        return client

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def ask(self, request: HttpRequest, read: Callable[[JsonObject], T]) -> T:
        """Send a request that may safely be sent twice, until it is answered or our patience ends.

        Args:
            request: what is asked.
            read: makes something of the JSON object that answers it; may raise what a wrong shape makes Python raise.

        Raises:
            OrchestratorError: what `explain` makes of it.
            SettingsError: the address cannot be one.
        """
        return self.repeat(lambda once: once(request, read))

    def repeat(self, work: Callable[[Once], T]) -> T:
        """Do what takes several requests, again from its start until all are answered or our patience ends.

        Raises:
            OrchestratorError, SettingsError: as in `ask`.
        """
        policy = self.policy
        end = time.monotonic() + policy.total_seconds
        tries = 0

        def once(request: HttpRequest, read: Callable[[JsonObject], T1]) -> T1:
            left = policy.answer_seconds if tries == 1 else max(SHORTEST_TRY_SECONDS, end - time.monotonic())
            return self._read(request, read, longest_seconds=left)

        def attempt() -> T:
            nonlocal tries
            tries += 1
            return work(once)

        retrying = policy.retrying(
            retry=tenacity.retry_if_exception(_transient), wait=_Pauses(policy), before_sleep=self._log_retry
        )
        try:
            return retrying(attempt)
        except HttpFault as fault:
            fault.policy = policy
            raise self._error(fault) from fault

    def send_once(self, request: HttpRequest) -> HttpAnswer:
        """Send a request that must not be sent twice; the answer need not be JSON.

        Raises:
            OrchestratorError: what `explain` makes of it.
        """
        try:
            return self._send(request, longest_seconds=self.policy.answer_seconds)
        except HttpFault as fault:
            raise self._error(fault) from fault

    def _read(self, request: HttpRequest, read: Callable[[JsonObject], T], *, longest_seconds: float) -> T:
        answer = self._send(request, longest_seconds=longest_seconds)
        data = answer.json_object()
        if data is None:
            raise HttpFault(_not_an_object(answer), answer.url, answer=answer)
        try:
            return read(data)
        except _SHAPE_ERRORS as error:
            raise HttpFault(Problem.OTHER_SHAPE, answer.url, detail=repr(error), answer=answer) from error

    def _send(self, request: HttpRequest, *, longest_seconds: float) -> HttpAnswer:
        url = self._url(request)
        try:
            response = self._session.request(
                request.method,
                url,
                params=request.query,
                data=request.form,
                json=request.json,
                headers=request.headers,
                allow_redirects=False,
                stream=True,
                timeout=(
                    min(self.policy.connect_seconds, longest_seconds),
                    min(self.policy.answer_seconds, longest_seconds),
                ),
                verify=self._verify,
            )
        except _FOREIGN as error:
            raise _fault(error, url) from error
        with response:
            try:
                answer = HttpAnswer(url, response.status_code, response.headers, _body(response))
            except _FOREIGN as error:
                raise _fault(error, url, begun=True) from error
        if not request.accepts(answer):
            _require_success(answer)
        return answer

    def _url(self, request: HttpRequest) -> str:
        return f"{self.uri}/{request.path}"

    def _error(self, fault: HttpFault) -> OrchestratorError:
        if fault.problem is Problem.WRONG_ADDRESS:
            return SettingsError(f"{self.uri} is not an address: correct {self._server.setting} ({fault.detail})")
        return self._explain(fault)

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, HttpFault):
            _log.warning("Trying again: %s", self._explain(error))


class _Pauses(tenacity.wait.wait_base):
    """As long as the server asks for, within the policy's bounds; else the policy's own pauses."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        if isinstance(error, HttpFault) and error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, self._policy.longest_pause_seconds)
        return self._policy.pauses(retry_state)


def _transient(error: BaseException) -> bool:
    return isinstance(error, HttpFault) and error.problem.transient


# ---- an answer, bounded in time and size


class _TooLargeError(Exception):
    """Neither an OSError nor an HTTPException, so that no library in between takes it for a broken connection."""


class _BoundedReader(io.RawIOBase):
    """What a socket receives for one answer, until the answer has taken too long or is too large.

    A socket's own timeout bounds the silence between two bytes only. This one bounds the whole answer, in any
    framing: headers, chunk sizes, body and trailers all pass through here.
    """

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._socket = sock
        self._raw = raw
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        self._left = LARGEST_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(seconds)
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise _TooLargeError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    """Takes the read timeout, which the socket has by now, for that of the whole answer."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(sock, raw))


class _HttpConnection(urllib3.connection.HTTPConnection):
    response_class = _BoundedResponse


class _HttpsConnection(urllib3.connection.HTTPSConnection):
    response_class = _BoundedResponse


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow none: even when told not to, requests reads the whole body of a redirect, and parses its target."""


class _BoundedAdapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager


def _body(response: requests.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(2**16):
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise _TooLargeError
    return bytes(body)


# ---- the error map

_FOREIGN = (requests.RequestException, urllib3.exceptions.HTTPError, _TooLargeError)
_SHAPE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)


def _fault(error: Exception, url: str, *, begun: bool = False) -> HttpFault:
    """What an exception of the libraries means.

    Args:
        error: the exception.
        url: what was asked.
        begun: whether the answer had begun by then.
    """
    if isinstance(error, _TooLargeError):
        return HttpFault(Problem.TOO_LARGE, url)
    cause = _root(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return HttpFault(Problem.UNTRUSTED, url, detail=cause.verify_message)
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
        deeper = cause.__cause__ or cause.__context__
        if deeper is None:
            break
        cause = deeper
    return cause


def _require_success(answer: HttpAnswer) -> None:
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
        login = re.search(r"login|securityrealm|oauth|saml|sso|signin", urlsplit(place).path.lower())
        problem = Problem.LOGIN_REDIRECT if login else Problem.MOVED
        raise HttpFault(problem, answer.url, detail=place, answer=answer)


def _not_an_object(answer: HttpAnswer) -> Problem:
    """What a body means that is not the JSON object that was asked for."""
    body = answer.body[:65536].lstrip()
    if body.startswith(b"<") or "html" in answer.headers.get("Content-Type", "").lower():
        login = re.search(rb"j_spring_security_check|j_username|type=.password", body)
        return Problem.LOGIN_PAGE if login else Problem.WEB_PAGE
    try:
        json.loads(answer.body)
    except (ValueError, RecursionError):
        return Problem.NOT_JSON
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
