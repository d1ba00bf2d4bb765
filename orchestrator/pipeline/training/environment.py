"""The variables that the training process gets, and which of their values must not be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from orchestrator.errors import SettingsError
from orchestrator.remote.job import UNUSABLE, can_be_given, is_variable
from orchestrator.settings.source import PipelineSettings


def training_environment(settings: PipelineSettings) -> dict[str, str]:
    """The variables that the training process gets: where MLflow is, and what TRAINING_ENV names.

    Raises:
        SettingsError: TRAINING_ENV names a variable that is not set, or one that no process can be given.
    """
    names: Sequence[str] = settings.project.training_env
    if bad := [name for name in names if not is_variable(name)]:
        raise SettingsError(
            f"TRAINING_ENV names {bad[0]!r}, which cannot be the name of a variable: those have letters, digits and "
            "underscores only, and begin with no digit"
        )
    values = {name: settings.variables.get(name) for name in names}
    if missing := [name for name, value in values.items() if value is None]:
        raise SettingsError(
            f"TRAINING_ENV names {', '.join(missing)}, which the environment does not hold; set it or take it out"
        )
    mlflow = settings.mlflow
    environment = {
        "MLFLOW_TRACKING_URI": mlflow.uri_on_instance or mlflow.tracking_uri,
        "MLFLOW_TRACKING_USERNAME": mlflow.username,
        "MLFLOW_TRACKING_PASSWORD": mlflow.password.get_secret_value() if mlflow.password else None,
        "MLFLOW_TRACKING_TOKEN": mlflow.token.get_secret_value() if mlflow.token else None,
        "PYTHONUNBUFFERED": "1",  # else Python holds a piped log back, and nothing is live
        **values,
    }
    given = {name: value for name, value in environment.items() if value is not None}
    if bad := [name for name, value in given.items() if not can_be_given(value)]:
        raise SettingsError(f"{bad[0]} holds {UNUSABLE}; set it anew")
    return given


def secrets_in(environment: Mapping[str, str], settings: PipelineSettings) -> list[str]:
    """What must not be shown: all that TRAINING_ENV hands over, MLflow's credentials, passwords in addresses.

    Args:
        environment: of the training.
        settings: those that it was made of.
    """
    names = {*settings.project.training_env, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
    secrets = [value for name, value in environment.items() if name in names]
    for address in (*environment.values(), settings.mlflow.tracking_uri):
        # urlsplit() would refuse some addresses, and a refusal masks nothing.
        if login := re.match(r"\s*[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#@:]*:([^/?#]*)@", address):
            secrets += [login[1], unquote(login[1])]  # MLflow prints the one, other programs the other
    return secrets
