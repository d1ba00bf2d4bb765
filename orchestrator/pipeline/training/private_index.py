"""What leads a training's pip and uv to the private package index, and its login there.

It replaces PyPI and is no further index: where two are asked, the newer version wins, so whoever publishes a package of
an internal name on PyPI would have his code run (dependency confusion).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import urlsplit

from orchestrator.errors import SettingsError
from orchestrator.remote.job import JobFile
from orchestrator.resources.package_index import rejected_login
from orchestrator.settings.groups import MlflowSettings, PrivateIndexSettings
from orchestrator.settings.source import PipelineSettings

NETRC = "NETRC"

_OF_UV = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")
"""Either replaces PyPI; uv prefers the first one."""


def index_variables(settings: PipelineSettings, *, given: Mapping[str, str | None]) -> dict[str, str]:
    """Where pip and uv find packages; without the login, which stands in a file.

    Args:
        settings: of the pipeline.
        given: what TRAINING_ENV gives: it is stronger.

    Raises:
        SettingsError: MLflow is on the same host, so it would be sent the login of the index instead of its own.
    """
    index = settings.index
    if not index.url:
        return {}
    host = urlsplit(index.url).hostname
    if index.password and NETRC not in given and _has_login(settings.mlflow) and host == _mlflow_host(settings.mlflow):
        raise SettingsError(
            f"PRIVATE_INDEX_URL and MLflow are both on {host}, and a netrc file knows hosts only: MLflow's client "
            "would send it the login of the index instead of its own; use another name of the host for one of them "
            "(MLFLOW_TRACKING_URI_ON_INSTANCE)"
        )
    variables = {"PIP_INDEX_URL": index.url, "PIP_NO_INPUT": "1"}  # else pip asks for a password that is wrong
    return variables if any(name in given for name in _OF_UV) else {**variables, _OF_UV[0]: index.url}


def index_file(settings: PipelineSettings, environment: Mapping[str, str]) -> list[JobFile]:
    """The netrc file with the login, which requests, pip and uv read.

    Args:
        settings: of the pipeline.
        environment: of the training; one with a NETRC of its own keeps it.
    """
    index = settings.index
    if not (index.url and index.user and index.password) or NETRC in environment:
        return []
    host = urlsplit(index.url).hostname
    text = f"machine {host} login {index.user} password {index.password.get_secret_value()}\n"
    return [JobFile("netrc", text, variable=NETRC, secret=True)]


def require_index_login(settings: PipelineSettings, environment: Mapping[str, str]) -> None:
    """Refuse a login that the index rejects, as far as it can be asked from here.

    Args:
        settings: of the pipeline.
        environment: of the training; one with a NETRC of its own shows another login.

    Raises:
        SettingsError: it rejects the login.
    """
    index = settings.index
    if not index_file(settings, environment) or not (index.url and index.user and index.password):
        return
    if status := rejected_login(index.url, user=index.user, password=index.password.get_secret_value()):
        raise SettingsError(
            f"{status} from {urlsplit(index.url).hostname}: PRIVATE_INDEX_USER or its password is rejected, or may not "
            "read PRIVATE_INDEX_URL; correct PRIVATE_INDEX_USER and PRIVATE_INDEX_PASSWORD"
        )


def index_secrets(index: PrivateIndexSettings) -> list[str]:
    """What must not be shown of it: the password, also as HTTP has it."""
    if not (index.user and index.password):
        return []
    password = index.password.get_secret_value()
    return [password, base64.b64encode(f"{index.user}:{password}".encode()).decode()]


def _mlflow_host(mlflow: MlflowSettings) -> str | None:
    try:
        return urlsplit(mlflow.uri_on_instance or mlflow.tracking_uri).hostname
    except ValueError:  # somebody else's complaint
        return None


def _has_login(mlflow: MlflowSettings) -> bool:
    address = (mlflow.uri_on_instance or mlflow.tracking_uri).partition("?")[0]
    named = (mlflow.username, mlflow.token, mlflow.username_on_instance, mlflow.token_on_instance)
    return any(named) or "@" in address
