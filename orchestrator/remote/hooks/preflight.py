"""What a training cannot do without, looked at on its machine before minutes are spent on it.

Loaded by `sitecustomize.py` into the process of `mlflow run`, so all of it is seen as that one sees it: login, CA,
proxy, PATH. Each fault is one sentence; an empty one says that there is none. Needs Python 3.8.
"""

from __future__ import annotations

import base64
import http.client
import netrc
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 90.0
"""For an MLflow that is briefly away; a restart of it takes a minute."""

INDEX_SECONDS = 10.0
"""For an answer of the package index."""

LEAST_MB = 200
LITTLE_MB = 1000

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_TIMEOUT_SECONDS = "30"

_UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|suitable TLS CA certificate bundle|could not find the TLS cert", re.I
)
_REFUSED = re.compile(
    r"error code 40[13]\b|^(?:UNAUTHENTICATED|PERMISSION_DENIED|CUSTOMER_UNAUTHORIZED)\b"
    r"|: Forbidden$|is not authorized to|Missing Authentication Token|security token included in the request"
    r"|request signature we calculated"  # AWS, in front of MLflow
)
_CERTIFICATE = re.compile(r"_ALERT_(?:\w*CERTIFICATE\w*|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)\b")
_PACKAGES = (
    (re.compile(r"No module named '?requests_auth_aws_sigv4"), "requests-auth-aws-sigv4"),
    (re.compile(r"unsupported URI 'arn:"), "sagemaker-mlflow"),
)
"""What MLflow says without a package that it needs for its server, and the package."""

_UNSIGNED = re.compile(
    r"Unable to locate credentials|'NoneType' object has no attribute '(?:access_key|get_frozen_credentials)'"
    r"|AWS Access Key ID and Secret Access Key are required"
)
_REASON = re.compile(r"\[Errno -?\d+\] [^'\")]+|\[SSL[^'\")]+|[Cc]onnect(?:ion to \S+)? timed out|Read timed out")


def disk_fault(places: Iterable[str]) -> str:
    """Whether there is room for the project and what it needs.

    Args:
        places: folders that are written to.
    """
    seen = set()
    for place in places:
        try:
            free, device = shutil.disk_usage(place).free >> 20, os.stat(place).st_dev
        except OSError:
            continue
        if free < LEAST_MB:
            return (
                f"{place} has {free} MB left on its disk, and a training needs {LEAST_MB} MB at least: "
                "raise ROOT_VOLUME_GB, or take an image (AMI_ID) with more room there"
            )
        if free < LITTLE_MB and device not in seen:
            _say(f"there is little room left: {free} MB on the disk of {place}; raise ROOT_VOLUME_GB if it fills up")
        seen.add(device)
    return ""


def mlflow_fault(client: Callable[[], Any], run: str, address: str) -> str:
    """Whether MLflow gives this training its run, as `mlflow run` will ask for it.

    Args:
        client: makes MLflow's own client.
        run: the run's ID.
        address: of MLflow, for the sentence.
    """
    # We try again ourselves, and say so: MLflow's own seven tries are minutes of silence.
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", _TIMEOUT: os.environ.get(_TIMEOUT, _TIMEOUT_SECONDS)}
    where = f"MLflow at {_without_login(address)}"
    give_up, pause, reason = time.monotonic() + PATIENCE_SECONDS, 0.5, ""
    while True:
        try:
            with _Settings(settings):
                client().get_run(run)
            return ""
        except Exception as error:  # noqa: BLE001 - of MLflow, requests, a plug-in for its login: all have a text
            text = " ".join(f"{getattr(error, 'error_code', '')} {error}".split())
            first, reason = not reason, _reason(str(error))
        if _UNTRUSTED.search(text):
            return f"{where} has a certificate that is not trusted here: {reason}"
        if _CERTIFICATE.search(text):
            return f"{where} refuses the client certificate of the training, or asks for one: {reason}"
        for pattern, package in _PACKAGES:
            if pattern.search(text):
                return f"{where} cannot be asked without the package {package}"
        if text.startswith("RESOURCE_DOES_NOT_EXIST"):
            return f"{where} knows no run {run}"
        if _REFUSED.search(text):
            return f"{where} refuses the login of the training: {reason}"
        if time.monotonic() + pause > give_up and _UNSIGNED.search(text):
            return f"{where} wants signed requests, and this machine has no AWS credentials"
        if time.monotonic() + pause > give_up:
            return f"{where} did not answer within {PATIENCE_SECONDS:g} s: {reason}"
        if first:
            _say(f"{where} does not answer yet ({reason}): waiting for it, for {PATIENCE_SECONDS:g} s at most")
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def manager_fault(manager: str, *, in_container: bool, conda: str, has_environments: bool) -> str:
    """Whether the program is there that makes the project's environment.

    Args:
        manager: of the environment, as MLflow calls it.
        in_container: whether the project runs in one, whatever the manager is.
        conda: where MLflow looks for conda.
        has_environments: whether there are some already, for which nothing needs to be there.
    """
    programs = {"conda": conda} if has_environments else {"conda": conda, "virtualenv": "pyenv", "uv": "uv"}
    program = "docker" if in_container else programs.get(manager)
    if not program or shutil.which(program):
        return ""
    return f"{program}: not found on the training's PATH ({os.environ.get('PATH')})"


def index_fault() -> str:
    """Whether the private package index takes the login that pip and uv will show it.

    pip says of a wrong one that there is no such package. What else may be wrong is for pip and uv to say: they may
    have another proxy and other CAs.
    """
    file, index = os.environ.get("NETRC"), os.environ.get("PIP_INDEX_URL", "")
    if not file or file != f"{os.environ.get('ORCHESTRATOR_FILES')}netrc":
        return ""
    host = urlsplit(index).hostname or ""
    try:
        login = netrc.netrc(file).hosts.get(host)
        if not login:
            return ""
        basic = base64.b64encode(f"{login[0]}:{login[2]}".encode()).decode()
        # The page of one package: that of all of them may be megabytes long.
        page = f"{index.rstrip('/')}/pip/"
        request = urllib.request.Request(page, headers={"Authorization": f"Basic {basic}"})  # noqa: S310 - http(s)
        urllib.request.build_opener(_NoRedirect).open(request, timeout=INDEX_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            return f"401 from {host}: PRIVATE_INDEX_USER or its password is rejected"
        if error.code == 403:
            return f"403 from {host}: PRIVATE_INDEX_USER or its password is rejected, or may not read PRIVATE_INDEX_URL"
    except (OSError, ValueError, http.client.HTTPException, netrc.NetrcParseError):
        pass
    return ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The login is for this host only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(text: str) -> str:
    found = _REASON.findall(text)
    return found[-1] if found else " ".join(text.partition(". Response body")[0].split())[:300]


def _without_login(address: str) -> str:
    try:
        parts = urlsplit(address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    except ValueError:
        return "its address"


class _Settings:
    """Variables that this process has for a moment, and none that it starts."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._values}
        os.environ.update(self._values)

    def __exit__(self, *_: Any) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _say(text: str) -> None:
    sys.stderr.write(f"orchestrator: {text}\n")
    sys.stderr.flush()
