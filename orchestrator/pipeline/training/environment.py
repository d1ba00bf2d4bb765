"""The variables that the training process gets, and which of their values must not be shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from orchestrator.errors import SettingsError
from orchestrator.pipeline.training.secrecy import login_parts, secret_parts
from orchestrator.remote.job import UNUSABLE, JobFile, can_be_given, is_variable
from orchestrator.settings.source import REGION, PipelineSettings

_log = logging.getLogger(__name__)

RUN_CONTEXT = "MLFLOW_RUN_CONTEXT"

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
    """The variables that the training process gets: where MLflow is, the region, and what TRAINING_ENV names.

    Raises:
        SettingsError: TRAINING_ENV names a variable that is not set, or one that no process can be given.
    """
    sources = settings.project.training_sources
    if bad := [name for name in (*sources, *sources.values()) if not is_variable(name)]:
        raise SettingsError(
            f"TRAINING_ENV names {bad[0]!r}, which cannot be the name of a variable: those have letters, digits and "
            "underscores only, and begin with no digit; write NAME, or NAME=NAME_OF_ANOTHER_VARIABLE"
        )
    values = {name: settings.variables.get(source) for name, source in sources.items()}
    if missing := [sources[name] for name, value in values.items() if value is None]:
        raise SettingsError(
            f"TRAINING_ENV names {', '.join(missing)}, which neither the environment nor the pipeline's settings hold; "
            "set it or take it out"
        )
    mlflow = settings.mlflow
    environment: dict[str, str | None] = {
        # A docker_env project names what it needs, and MLflow looks for that before it has set anything itself.
        "MLFLOW_TRACKING_URI": mlflow.uri_on_instance or mlflow.tracking_uri,
        "MLFLOW_EXPERIMENT_ID": mlflow.experiment_id,
        "MLFLOW_TRACKING_USERNAME": mlflow.username,
        "MLFLOW_TRACKING_PASSWORD": mlflow.password.get_secret_value() if mlflow.password else None,
        "MLFLOW_TRACKING_TOKEN": mlflow.token.get_secret_value() if mlflow.token else None,
        **{name: settings.variables.get(name) or None for name in REGION},
        "PYTHONUNBUFFERED": "1",  # else Python holds a piped log back, and nothing is live
        **values,
    }
    if mlflow.ca_bundle and environment.get(MLFLOW_CA) == str(mlflow.ca_bundle):
        del environment[MLFLOW_CA]  # that is where it is here; `job_files` brings it to where the training is
    given = {name: value for name, value in environment.items() if value is not None}
    if bad := [name for name, value in given.items() if not can_be_given(value)]:
        raise SettingsError(f"{bad[0]} holds {UNUSABLE}; set it anew")
    return given


def with_run_tags(environment: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """The environment in which each run that the training makes with `mlflow.start_run` gets these tags.

    Source: `SystemEnvironmentContext` of MLflow, the same since 1.13:
    https://github.com/mlflow/mlflow/blob/v3.17.2/mlflow/tracking/context/system_environment_context.py

    Args:
        environment: of the training.
        tags: for the runs; stronger than those that the environment has already.
    """
    try:
        own = json.loads(environment.get(RUN_CONTEXT) or "{}")
    except ValueError:
        own = None
    if not isinstance(own, dict):
        _log.warning(f"Replaced {RUN_CONTEXT}, which is no JSON object and would be of no use to MLflow")
        own = {}
    return {**environment, RUN_CONTEXT: json.dumps({**own, **tags})}


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
    """What must not be shown: MLflow's credentials, what looks secret in TRAINING_ENV's variables, logins in addresses.

    Args:
        environment: of the training.
        settings: those that it was made of.
    """
    credentials = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    secrets = [environment[name] for name in credentials if name in environment]
    for name, source in settings.project.training_sources.items():
        if value := environment.get(name):
            secrets += [*secret_parts(name, value), *secret_parts(source, value)]
    for address in (*environment.values(), settings.mlflow.tracking_uri):
        secrets += login_parts(address)
    return secrets
