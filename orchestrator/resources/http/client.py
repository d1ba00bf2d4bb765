"""The base of all HTTP clients: address, login, TLS, retries.

The clients add the endpoints, and the sentences: they are told a `Problem` and say which setting to change.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import requests.auth
import tenacity

from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.resources.http.bounded import LARGEST_ANSWER, BoundedAdapter, DownloadAdapter, Session, whole_body
from orchestrator.resources.http.client_certificate import read_client_certificate
from orchestrator.resources.http.problems import (
    FOREIGN_ERRORS,
    SHAPE_ERRORS,
    HttpAnswer,
    HttpFault,
    JsonObject,
    Problem,
    fault_of,
    problem_of_body,
    require_success,
)
from orchestrator.resources.retry import RetryPolicy

SHORTEST_TRY_SECONDS = 1.0
"""A try at the end of our patience still gets this long."""

Method = Literal["GET", "POST", "PUT", "DELETE"]
T = TypeVar("T")
T1 = TypeVar("T1")
_log = logging.getLogger(__name__)


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
        client_certificate: PEM file with the certificate that we show, and its key; None: we have none.
        client_certificate_setting: where that comes from.
        headers: sent with each request.
    """

    address: Address
    setting: str
    auth: requests.auth.AuthBase | None
    ca_bundle: Path | None
    ca_setting: str
    client_certificate: Path | None = None
    client_certificate_setting: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class BearerToken(requests.auth.AuthBase):
    """Shows a token with each request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request, below the server's address.

    Attributes:
        method: GET, POST, PUT or DELETE.
        path: without a slash in front.
        query: parameters of the address.
        form: fields of a form, to be posted.
        json: to be posted as JSON.
        body: a file that is sent as it is, from its beginning, piece by piece.
        headers: further headers.
        accepts: answers that are right whatever their status; by default none.
        largest_bytes: an answer larger than this, once unpacked, is left.
    """

    method: Method = "GET"
    path: str
    query: Mapping[str, str] | None = None
    form: Mapping[str, str] | None = None
    json: Mapping[str, object] | None = None
    body: IO[bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    accepts: Callable[[HttpAnswer], bool] = lambda _: False
    largest_bytes: int = LARGEST_ANSWER


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
        SettingsError: there is no such CA file, or the client certificate cannot be used.
    """

    def __init__(
        self, server: HttpServer, *, policy: RetryPolicy, explain: Callable[[HttpFault], OrchestratorError]
    ) -> None:
        if server.ca_bundle is not None and not server.ca_bundle.is_file():
            raise SettingsError(f"{server.ca_setting}: there is no file {server.ca_bundle}")
        if server.client_certificate is not None:
            read_client_certificate(server.client_certificate, setting=server.client_certificate_setting)
        self.policy = policy
        self._server = server
        self._explain = explain
        # Handed to each request, because REQUESTS_CA_BUNDLE would win over the session's own value.
        self._verify: str | bool = str(server.ca_bundle) if server.ca_bundle else True
        self._certificate = str(server.client_certificate) if server.client_certificate else None
        self._session = _session(server, BoundedAdapter(), accept="application/json")
        self._downloads = _session(server, DownloadAdapter(), accept="*/*")

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
        self._downloads.close()

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

    def download(self, request: HttpRequest, take: Callable[[Iterator[bytes]], T]) -> T:
        """Fetch a file of any size, again from its start until it has come whole or our patience ends.

        Args:
            request: what is asked; its bound on the answer's size does not hold.
            take: takes the file piece by piece; what it raises is passed on, but for `IncompleteError`.

        Raises:
            OrchestratorError, SettingsError: as in `ask`.
        """
        policy = self.policy

        def attempt() -> T:
            with self._response(request, longest_seconds=policy.answer_seconds, session=self._downloads) as response:
                answer = HttpAnswer(self._url(request), response.status_code, response.headers, b"")
                if not response.ok or response.is_redirect:
                    answer = replace(answer, body=whole_body(response, limit=request.largest_bytes))
                require_success(answer)
                try:
                    return take(response.iter_content(2**18))
                except IncompleteError as error:
                    raise HttpFault(Problem.UNREACHABLE, answer.url, detail=str(error)) from error

        retrying = policy.retrying(
            retry=tenacity.retry_if_exception(_transient), wait=_Pauses(policy), before_sleep=self._log_retry
        )
        try:
            return retrying(attempt)
        except HttpFault as fault:
            fault.policy = policy
            raise self._error(fault) from fault

    def _read(self, request: HttpRequest, read: Callable[[JsonObject], T], *, longest_seconds: float) -> T:
        answer = self._send(request, longest_seconds=longest_seconds)
        data = answer.json_object()
        if data is None and request.method == "PUT" and not answer.body.strip():
            data = {}  # what was stored needs no answer
        if data is None:
            raise HttpFault(problem_of_body(answer), answer.url, answer=answer)
        try:
            return read(data)
        except SHAPE_ERRORS as error:
            raise HttpFault(Problem.OTHER_SHAPE, answer.url, detail=repr(error), answer=answer) from error

    def _send(self, request: HttpRequest, *, longest_seconds: float) -> HttpAnswer:
        with self._response(request, longest_seconds=longest_seconds, session=self._session) as response:
            body = whole_body(response, limit=request.largest_bytes)
            answer = HttpAnswer(self._url(request), response.status_code, response.headers, body)
        if not request.accepts(answer):
            require_success(answer)
        return answer

    @contextmanager
    def _response(
        self, request: HttpRequest, *, longest_seconds: float, session: requests.Session
    ) -> Iterator[requests.Response]:
        """The answer, whose body is yet to be read.

        Raises:
            HttpFault: there is none, or reading its body in this context fails.
        """
        url = self._url(request)
        if request.body is not None:
            request.body.seek(0)
        try:
            response = session.request(
                request.method,
                url,
                params=request.query,
                data=request.form if request.body is None else request.body,
                json=request.json,
                headers=request.headers,
                allow_redirects=False,
                stream=True,
                timeout=(
                    min(self.policy.connect_seconds, longest_seconds),
                    min(self.policy.answer_seconds, longest_seconds),
                ),
                verify=self._verify,
                cert=self._certificate,
            )
        except FOREIGN_ERRORS as error:
            raise fault_of(error, url) from error
        except OSError as error:  # requests' own, for a file of certificates that is gone
            raise HttpFault(Problem.UNREADABLE, url, detail=str(error)) from error
        with response:
            try:
                yield response
            except FOREIGN_ERRORS as error:
                raise fault_of(error, url, begun=True) from error

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


class IncompleteError(Exception):
    """What came is not the whole file."""


def _session(server: HttpServer, adapter: BoundedAdapter, *, accept: str) -> Session:
    session = Session()
    session.auth = server.auth
    session.headers.update({"Accept": accept, **server.headers})
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


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
