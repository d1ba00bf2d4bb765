"""Talking HTTP with an MLflow server: its address, login, timeouts, retries, and errors in plain words."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
import requests.auth
import tenacity
import urllib3

from orchestrator.errors import (
    MlflowError,
    MlflowNotFound,
    MlflowRefused,
    MlflowRejected,
    MlflowUnavailable,
    SettingsError,
)
from orchestrator.settings.groups import MlflowSettings

# A run that is cancelled ends within 15 s, so no single wait in here may be longer.
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
SHORTEST_WAIT_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 5.0

Method = Literal["GET", "POST"]
Answer = Mapping[str, Any]
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """A tracking URI without the login that may stand in it.

    Attributes:
        uri: safe to print; no slash at its end.
        username: from `https://username:password@host`, else None.
        password: likewise.
    """

    uri: str
    username: str | None
    password: str | None = field(repr=False)

    @classmethod
    def parse(cls, tracking_uri: str) -> Address:
        """Read MLFLOW_TRACKING_URI.

        Raises:
            SettingsError: it is no address that another machine can reach.
        """
        try:
            parts = urlsplit(tracking_uri.strip())
            parts.port  # noqa: B018 - it is parsed, and found to be wrong, when it is read
        except ValueError:
            raise SettingsError(
                "MLFLOW_TRACKING_URI is not an address: write for example http://mlflow.example.com:5000"
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                "MLFLOW_TRACKING_URI has to begin with http:// or https://, as in http://mlflow.example.com:5000: "
                "the training runs on another machine, which reaches no file or database of this one; "
                "start one with `mlflow server`"
            )
        if parts.query or parts.fragment:
            raise SettingsError("MLFLOW_TRACKING_URI is the address of a page: leave out all from the # or ? on")
        host = parts.netloc.rpartition("@")[2]
        return cls(
            uri=urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


class _BearerToken(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class MlflowHttp:
    """A session with one MLflow server.

    Args:
        settings: the server and the login.
        patience_seconds: how long an outage (no connection, timeout, 429, 5xx, a proxy's page) is
            ridden out, counted per call. May be changed at any time.

    Raises:
        SettingsError: the address or the CA file is wrong.
    """

    def __init__(self, settings: MlflowSettings, *, patience_seconds: float) -> None:
        address = Address.parse(settings.tracking_uri)
        self.uri = address.uri
        self.patience_seconds = patience_seconds
        self._deadline = 0.0
        self._session = requests.Session()
        self._session.auth = _login(settings, address)
        if settings.ca_bundle is not None and not settings.ca_bundle.is_file():
            raise SettingsError(f"MLFLOW_TRACKING_SERVER_CERT_PATH: there is no file {settings.ca_bundle}")
        # Handed to each request, because REQUESTS_CA_BUNDLE would win over the session's own value.
        self._verify: str | bool = str(settings.ca_bundle) if settings.ca_bundle else True

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def call(self, method: Method, endpoint: str, payload: Mapping[str, object], read: Callable[[Answer], T]) -> T:
        """Send a request that may safely be sent twice, until it is answered or patience ends.

        Args:
            method: GET sends the payload as query, POST as JSON.
            endpoint: below `/api/2.0/mlflow/`, see https://mlflow.org/docs/latest/rest-api.html.
            payload: the fields of the request.
            read: makes something of the answer.

        Raises:
            MlflowError: see `errors.py` for its kinds.
        """
        return self.patiently(lambda: self.once(method, endpoint, payload, read))

    def patiently(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt``, which uses `once`, until it does not raise MlflowUnavailable, or patience ends."""
        self._deadline = time.monotonic() + self.patience_seconds
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(MlflowUnavailable),
            stop=tenacity.stop_before_delay(self.patience_seconds),
            wait=tenacity.wait_exponential(multiplier=0.25, max=LONGEST_PAUSE_SECONDS) + tenacity.wait_random(0, 0.25),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except MlflowUnavailable as error:
            raise MlflowUnavailable(
                f"{error}; gave up after {self.patience_seconds:g} s: "
                "see whether the server runs, and whether MLFLOW_TRACKING_URI is its address"
            ) from error

    def once(self, method: Method, endpoint: str, payload: Mapping[str, object], read: Callable[[Answer], T]) -> T:
        """Send a request once, for `patiently`; arguments and errors as in `call`."""
        longest = max(SHORTEST_WAIT_SECONDS, self._deadline - time.monotonic())
        try:
            response = self._session.request(
                method,
                f"{self.uri}/api/2.0/mlflow/{endpoint}",
                params={key: str(value) for key, value in payload.items()} if method == "GET" else None,
                json=payload if method == "POST" else None,
                timeout=(min(CONNECT_SECONDS, longest), min(READ_SECONDS, longest)),
                allow_redirects=False,
                verify=self._verify,
            )
        except requests.exceptions.InvalidURL as error:
            raise SettingsError(f"{self.uri} is not an address: correct MLFLOW_TRACKING_URI ({error})") from error
        except requests.RequestException as error:
            raise self._no_answer(error) from error
        answer = self._answer(response)
        try:
            return read(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MlflowError(
                f"{self.uri} answered with JSON of another shape than MLflow's ({error!r}): "
                "MLFLOW_TRACKING_URI is not the address of an MLflow server"
            ) from error

    def _no_answer(self, error: requests.RequestException) -> MlflowError:
        cause = _root(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return MlflowError(
                f"the certificate of MLflow at {self.uri} is not trusted ({cause.verify_message}): "
                "set MLFLOW_TRACKING_SERVER_CERT_PATH to a PEM file with its CA"
            )
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
        return MlflowUnavailable(f"MLflow at {self.uri} does not answer ({reason})")

    def _answer(self, response: requests.Response) -> Answer:
        status = response.status_code
        answer = _json_object(response)
        said = f"{status} {_phrase(status)}"
        if answer and answer.get("message"):
            said += f": {str(answer['message'])[:500]}"
        if status in (408, 429) or status >= 500:
            raise MlflowUnavailable(f"MLflow at {self.uri} is not well ({said})")
        if status == HTTPStatus.FORBIDDEN and "Invalid Host header" in response.text[:500]:
            # https://mlflow.org/docs/latest/self-hosting/security/network/
            host = urlsplit(self.uri).netloc
            raise MlflowRefused(
                f"MLflow at {self.uri} does not know itself by the name {host}: start that server with "
                f"--allowed-hosts {host} (or MLFLOW_SERVER_ALLOWED_HOSTS)"
            )
        if status in (401, 403):
            raise MlflowRefused(
                f"{said} from MLflow at {self.uri}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN, to a login that may read and write the experiment"
            )
        if 300 <= status < 400:
            place = urlsplit(response.headers.get("Location", ""))
            raise MlflowRefused(
                f"MLflow at {self.uri} redirects to {place.scheme}://{place.hostname}{place.path}: if that is a "
                "login page, set MLFLOW_TRACKING_TOKEN; if the server has moved, correct MLFLOW_TRACKING_URI"
            )
        if answer is not None and status == HTTPStatus.NOT_FOUND:
            raise MlflowNotFound(f"{said} (MLflow at {self.uri})")
        if answer is not None and status >= 400:
            raise MlflowRejected(f"MLflow at {self.uri} rejected the request ({said})")
        if status >= 400:
            raise MlflowError(
                f"{self.uri} has no MLflow REST API ({said}): "
                "MLFLOW_TRACKING_URI is not the address of an MLflow server"
            )
        if answer is None:
            # The page may be a proxy's, shown while the server behind it restarts: worth another try.
            raise MlflowUnavailable(
                f"{self.uri} answered with {response.headers.get('Content-Type', 'something')} instead of "
                "MLflow's JSON, so it is not an MLflow server, or something in front of it stands in the way"
            )
        return answer

    def _tell(self, state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None  # noqa: S101 - for the type checker: before_sleep follows an outcome
        _log.warning("%s; trying again", state.outcome.exception())


def _login(settings: MlflowSettings, address: Address) -> requests.auth.AuthBase | None:
    """The login, in the order in which MLflow's own client looks for one."""
    username = settings.username or address.username
    password = settings.password.get_secret_value() if settings.password else address.password
    if username and password:
        # Bytes, because requests would encode text as Latin-1.
        return requests.auth.HTTPBasicAuth(username.encode(), password.encode())
    if settings.token:
        token = settings.token.get_secret_value().strip()
        if not token.isascii() or not token.isprintable():
            raise SettingsError("MLFLOW_TRACKING_TOKEN has characters in it that no token has: copy it once more")
        return _BearerToken(token)
    return None


def _root(error: requests.RequestException) -> BaseException:
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


def _json_object(response: requests.Response) -> Answer | None:
    try:
        answer = response.json()
    except requests.exceptions.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
