"""The variables that the training process gets, and which of their values must not be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from orchestrator.errors import SettingsError
from orchestrator.remote.job import UNUSABLE, JobFile, can_be_given, is_variable
from orchestrator.settings.source import PipelineSettings

MLFLOW_CA = "MLFLOW_TRACKING_SERVER_CERT_PATH"

DOCKER_ENV = "docker.env"
"""The file that names the variables for a container."""

OF_THE_MACHINE = frozenset(
    {"PATH", "HOME", "HOSTNAME", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "BASH_ENV", "ENV"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO"}
)
"""Variables that say where things are on the machine: an image has its own, and fails with places that it has not.
Who has the machine's mounted names them under `docker_env.environment`."""


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
    environment: dict[str, str | None] = {
        "MLFLOW_TRACKING_URI": mlflow.uri_on_instance or mlflow.tracking_uri,
        "MLFLOW_TRACKING_USERNAME": mlflow.username,
        "MLFLOW_TRACKING_PASSWORD": mlflow.password.get_secret_value() if mlflow.password else None,
        "MLFLOW_TRACKING_TOKEN": mlflow.token.get_secret_value() if mlflow.token else None,
        "PYTHONUNBUFFERED": "1",  # else Python holds a piped log back, and nothing is live
        **values,
    }
    if mlflow.ca_bundle and environment.get(MLFLOW_CA) == str(mlflow.ca_bundle):
        del environment[MLFLOW_CA]  # that is where it is here; `job_files` brings it to where the training is
    given = {name: value for name, value in environment.items() if value is not None}
    if bad := [name for name, value in given.items() if not can_be_given(value)]:
        raise SettingsError(f"{bad[0]} holds {UNUSABLE}; set it anew")
    return given


def job_files(environment: Mapping[str, str], settings: PipelineSettings) -> list[JobFile]:
    """What the training needs in its directory: MLflow's CA, and the names of the variables that a container gets.

    MLflow gives a container no variables but its own and those that MLproject names. Docker takes the values
    from its own environment, so that none is in a list of processes or on the disk.

    Args:
        environment: of the training.
        settings: the settings that it was made of.

    Raises:
        SettingsError: the CA cannot be read.
    """
    files = []
    if settings.mlflow.ca_bundle and MLFLOW_CA not in environment:
        try:
            text = settings.mlflow.ca_bundle.read_text(errors="surrogateescape")
        except OSError as error:
            raise SettingsError(f"{MLFLOW_CA}: {settings.mlflow.ca_bundle} cannot be read ({error})") from error
        if not can_be_given(text):
            raise SettingsError(f"{MLFLOW_CA}: {settings.mlflow.ca_bundle} is no PEM file")
        files.append(JobFile("mlflow-ca.pem", text, variable=MLFLOW_CA))
    variables = [*environment, *(file.variable for file in files if file.variable)]
    names = [f"{name}\n" for name in variables if name not in OF_THE_MACHINE]
    return [*files, JobFile(DOCKER_ENV, "".join(names))]


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
