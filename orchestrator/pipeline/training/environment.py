"""The variables that the training process gets, and which of their values must not be shown."""

from __future__ import annotations

import base64
import json
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.errors import SettingsError
from orchestrator.names import MlflowTag
from orchestrator.pipeline.training.private_index import index_file, index_secrets, index_variables
from orchestrator.pipeline.training.secrecy import login_parts, secret_parts
from orchestrator.remote.job import UNUSABLE, JobFile, can_be_given, is_variable
from orchestrator.remote.masking import Masker
from orchestrator.remote.reserved import reserved
from orchestrator.resources.http import read_client_certificate
from orchestrator.settings.groups import MlflowSettings
from orchestrator.settings.source import HANDED_WITH_A_WARNING, OWN_SECRETS, REGION, PipelineSettings

_log = logging.getLogger(__name__)

RUN_CONTEXT = "MLFLOW_RUN_CONTEXT"

MLFLOW_CA = "MLFLOW_TRACKING_SERVER_CERT_PATH"
MLFLOW_CLIENT_CERTIFICATE = "MLFLOW_TRACKING_CLIENT_CERT_PATH"

MODEL_CHECK = "ORCHESTRATOR_MODEL_CHECK"
"""As `hooks/model_check.py` knows it; the project's own processes do not get it."""

DOCKER_ENV = "docker.env"
"""The file that names the variables for a container."""

OF_THE_MACHINE = frozenset(
    {"PATH", "HOME", "HOSTNAME", "TMPDIR", "LD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO"}
)
"""Variables that say where things are on the machine: an image has its own, and fails with places that it has not.
Who has the machine's mounted names them under `docker_env.environment`."""


_MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OURS = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_AWS_SIGV4", *_MLFLOW_LOGIN)
"""The training gets these whether TRAINING_ENV names them or not, and as the instance needs them."""

_RECOGNISED = 12
"""Characters of a secret that is looked for within other values, too; fewer do when it is no mere word."""


def training_environment(settings: PipelineSettings) -> dict[str, str]:
    """The variables that the training process gets: where MLflow is, the region, and what TRAINING_ENV names.

    Raises:
        SettingsError: TRAINING_ENV names a variable that is not set, one that no process can be given, or a secret of
            the orchestrator; or SECRET_ENV names one that is not set.
    """
    sources = settings.project.training_sources
    if bad := [name for name in (*sources, *sources.values()) if not is_variable(name)]:
        raise SettingsError(
            f"TRAINING_ENV names {bad[0]!r}, which cannot be the name of a variable: those have letters, digits and "
            "underscores only, and begin with no digit; write NAME, or NAME=NAME_OF_ANOTHER_VARIABLE"
        )
    for name in sources:
        if fault := reserved(name):
            raise SettingsError(f"TRAINING_ENV names {name}, which no training can be given: {fault}; take it out")
    values = {name: settings.variables.get(source) for name, source in sources.items()}
    if missing := [sources[name] for name, value in values.items() if value is None]:
        raise SettingsError(
            f"TRAINING_ENV names {', '.join(missing)}, which neither the environment nor the pipeline's settings hold; "
            "set it or take it out"
        )
    _require_declared(settings, values)
    for name, value in values.items():
        _refuse_own(name, sources[name], value or "", settings)
    mlflow = settings.mlflow
    login = _mlflow_login(mlflow)
    environment: dict[str, str | None] = {
        # A docker_env project names what it needs, and MLflow looks for that before it has set anything itself.
        "MLFLOW_TRACKING_URI": _mlflow_address(mlflow),
        "MLFLOW_EXPERIMENT_ID": mlflow.experiment_id,
        "MLFLOW_WORKSPACE": (mlflow.workspace or "").strip() or None,
        "MLFLOW_TRACKING_AWS_SIGV4": "true" if mlflow.aws_sigv4 else None,
        "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": mlflow.sagemaker_endpoint,
        **login,
        **{name: settings.variables.get(name) or None for name in REGION},
        "PYTHONUNBUFFERED": "1",  # else Python holds a piped log back, and nothing is live
        **index_variables(settings, given=values),
        **{name: value for name, value in values.items() if not (name in _OURS and sources[name] == name)},
    }
    for name, path in ((MLFLOW_CA, mlflow.ca_bundle), (MLFLOW_CLIENT_CERTIFICATE, mlflow.client_certificate)):
        if path and environment.get(name) == str(path):
            del environment[name]  # that is where it is here; `job_files` brings it to where the training is
    _warn_of_own_logins(environment, settings)
    given = {name: value for name, value in environment.items() if value is not None}
    if bad := [name for name, value in given.items() if not can_be_given(value)]:
        raise SettingsError(f"{bad[0]} holds {UNUSABLE}; set it anew")
    return given


def _mlflow_login(mlflow: MlflowSettings) -> dict[str, str | None]:
    """The training's own login, if it has one, else ours."""
    own = (mlflow.username_on_instance, mlflow.password_on_instance, mlflow.token_on_instance)
    username, password, token = own if any(own) else (mlflow.username, mlflow.password, mlflow.token)
    secrets = [secret.get_secret_value() if secret else None for secret in (password, token)]
    return dict(zip(_MLFLOW_LOGIN, (username, *secrets), strict=True))


def _mlflow_address(mlflow: MlflowSettings) -> str:
    if mlflow.uri_on_instance:
        return mlflow.uri_on_instance
    if mlflow.username_on_instance or mlflow.token_on_instance:  # a login in our address is ours
        return re.sub(r"(://)[^/?#]*@", r"\1", mlflow.tracking_uri)
    return mlflow.tracking_uri


def _require_declared(settings: PipelineSettings, values: Mapping[str, str | None]) -> None:
    unknown = [
        name
        for name in settings.project.secret_env
        if settings.variables.get(name) is None and values.get(name) is None
    ]
    if unknown:
        raise SettingsError(
            f"SECRET_ENV names {', '.join(unknown)}, which neither TRAINING_ENV, the environment nor the pipeline's "
            "settings hold: nothing would be hidden; correct it or take it out"
        )


def _own_secrets(settings: PipelineSettings) -> Iterator[tuple[str, str]]:
    """The orchestrator's own secrets: where each is from, and its text."""
    yield "JENKINS_TOKEN", settings.jenkins.token.get_secret_value()
    if settings.ssh.key_passphrase:
        yield "KEY_PASSPHRASE", settings.ssh.key_passphrase.get_secret_value()
    for name in OWN_SECRETS:
        if value := settings.variables.get(name):
            yield name, value
            yield from ((name, password) for password in login_parts(value))
    yield from (("KEY_PATH", line) for line in _key_lines(settings.ssh.key_path.expanduser()))


def _key_lines(path: Path | None) -> list[str]:
    """The lines of the private key in a file: any of them tells it, and copies differ in their line ends."""
    try:
        text = path.read_text(errors="replace") if path else ""
    except OSError:  # a missing key is somebody else's complaint
        return []
    keys = re.findall(r"PRIVATE KEY-----(.*?)-----END ", text, re.DOTALL)
    return [line.strip() for key in keys for line in key.splitlines() if len(line.strip()) > _RECOGNISED]


def _refuse_own(name: str, source: str, value: str, settings: PipelineSettings) -> None:
    """Refuse what would give a training power over the orchestrator.

    Raises:
        SettingsError: the variable is, or holds, one of the orchestrator's secrets.
    """
    entry = name if name == source else f"{name}={source}"
    if source in OWN_SECRETS or source.startswith(("ORCHESTRATOR_", "DAGSTER_")):
        raise SettingsError(
            f"TRAINING_ENV names {entry}, but {source} is the orchestrator's own, and whoever changes the project's "
            "code would have it; take it out, or hand over a login made for the training: NAME=NAME_OF_ANOTHER_VARIABLE"
        )
    for origin, secret in _own_secrets(settings):
        text = secret.strip()
        within = len(text) >= _RECOGNISED or (len(text) >= _RECOGNISED - 4 and not text.isalpha())
        if text and (value.strip() == text or (within and Masker([text]).mask(value) != value)):
            raise SettingsError(
                f"TRAINING_ENV names {entry}, whose value holds the orchestrator's own {origin}, and whoever changes "
                "the project's code would have it; take it out, or hand over a login made for the training"
            )


def _warn_of_own_logins(environment: Mapping[str, str | None], settings: PipelineSettings) -> None:
    """Say it when the training gets logins of ours: projects ask for them, and there are better ways."""
    ours = {value: name for name in HANDED_WITH_A_WARNING if (value := settings.variables.get(name))}
    handed = {ours[value] for value in environment.values() if value in ours} - {"MLFLOW_TRACKING_USERNAME"}
    advice = {
        "AWS_": "give the instance a role instead (INSTANCE_PROFILE), or hand over keys made for it "
        "(TRAINING_ENV: AWS_ACCESS_KEY_ID=NAME_OF_ANOTHER_VARIABLE, ...)",
        "MLFLOW_": "set MLFLOW_TRACKING_USERNAME_ON_INSTANCE and MLFLOW_TRACKING_PASSWORD_ON_INSTANCE, or "
        "MLFLOW_TRACKING_TOKEN_ON_INSTANCE or MLFLOW_TRACKING_CLIENT_CERT_PATH_ON_INSTANCE, to a login that may edit "
        "this experiment only",
    }
    certificate, source = _client_certificate(settings.mlflow)
    if certificate and source == MLFLOW_CLIENT_CERTIFICATE and MLFLOW_CLIENT_CERTIFICATE not in environment:
        handed.add(source)
    sentences = [
        f"{' and '.join(names)}: {advice[prefix]}"
        for prefix in advice
        if (names := sorted(name for name in handed if name.startswith(prefix)))
    ]
    if sentences:
        _log.warning(f"Handing logins of the orchestrator itself to code that others write: {'; '.join(sentences)}")


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


def with_model_check(environment: Mapping[str, str], settings: PipelineSettings, *, left: float) -> dict[str, str]:
    """The environment in which the training's model is loaded once, right after its command exited 0.

    Args:
        environment: of the training.
        settings: those that it was made of.
        left: seconds until the training's deadline.
    """
    project = settings.project
    asked = {
        "seconds": project.model_check_minutes * 60,
        "left": round(left),
        "choice": str(project.model_choice or ""),
        "secret": [*project.secret_env, *(name for name, source in project.training_sources.items() if name != source)],
        "tag": MlflowTag.TRAINING,
        "result": MlflowTag.MODEL_LOADED,
    }
    return {**environment, MODEL_CHECK: json.dumps(asked)}


def job_files(environment: Mapping[str, str], settings: PipelineSettings) -> list[JobFile]:
    """What the training needs in its directory: MLflow's CA, certificate and logins, and a container's variables.

    The certificate comes with its key, so none but the login can read it, nor the file with the login at the private
    package index: in a container, its user or root.

    MLflow gives a container no variables but its own and those that MLproject names. Docker takes the values
    from its own environment, so that none is in a list of processes or on the disk.

    Args:
        environment: of the training.
        settings: the settings that it was made of.

    Raises:
        SettingsError: the CA or the client certificate cannot be read.
    """
    files = []
    if settings.mlflow.ca_bundle and MLFLOW_CA not in environment:
        try:
            text = settings.mlflow.ca_bundle.read_text(errors="surrogateescape")
        except OSError as error:
            raise SettingsError(f"{MLFLOW_CA}: {settings.mlflow.ca_bundle} cannot be read ({error})") from error
        if not can_be_given(text) or not _is_pem(text):
            raise SettingsError(f"{MLFLOW_CA}: {settings.mlflow.ca_bundle} is no PEM file")
        files.append(JobFile("mlflow-ca.pem", text, variable=MLFLOW_CA))
    certificate, setting = _client_certificate(settings.mlflow)
    if certificate and MLFLOW_CLIENT_CERTIFICATE not in environment:
        text = read_client_certificate(certificate, setting=setting)
        if not can_be_given(text):
            raise SettingsError(f"{setting}: {certificate} holds {UNUSABLE}; write it anew")
        files.append(JobFile("mlflow-client.pem", text, variable=MLFLOW_CLIENT_CERTIFICATE, secret=True))
    files += index_file(settings, environment)
    variables = [*environment, *(file.variable for file in files if file.variable)]
    names = [f"{name}\n" for name in variables if name not in OF_THE_MACHINE]
    return [*files, JobFile(DOCKER_ENV, "".join(names))]


def _client_certificate(mlflow: MlflowSettings) -> tuple[Path | None, str]:
    """The training's own, if it has one, else ours; and the setting that names it."""
    if mlflow.client_certificate_on_instance:
        return mlflow.client_certificate_on_instance, f"{MLFLOW_CLIENT_CERTIFICATE}_ON_INSTANCE"
    return mlflow.client_certificate, MLFLOW_CLIENT_CERTIFICATE


def _is_pem(text: str) -> bool:
    """Whether all the certificates in a text, and there is one, can be read; what stands between them is a comment."""
    certificates = re.findall(
        r"-----BEGIN (?:X509 )?CERTIFICATE-----(.*?)-----END (?:X509 )?CERTIFICATE-----", text, re.DOTALL
    )
    try:
        for certificate in certificates:
            der = base64.b64decode("".join(certificate.split()), validate=True)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError):  # no base64, or no certificate
        return False
    return bool(certificates) or "-----BEGIN TRUSTED CERTIFICATE-----" in text


def secrets_in(environment: Mapping[str, str], settings: PipelineSettings) -> list[str]:
    """What must not be shown: MLflow's credentials, what looks secret in TRAINING_ENV's variables, logins in addresses.

    What SECRET_ENV names is secret whatever it looks like.

    Args:
        environment: of the training.
        settings: those that it was made of.
    """
    mlflow = settings.mlflow
    credentials = (mlflow.password, mlflow.token, mlflow.password_on_instance, mlflow.token_on_instance)
    secrets = [credential.get_secret_value() for credential in credentials if credential]
    logins = ((mlflow.username, mlflow.password), (mlflow.username_on_instance, mlflow.password_on_instance))
    secrets += _key_lines(_client_certificate(mlflow)[0])
    secrets += [_basic(user, password.get_secret_value()) for user, password in logins if user and password]
    secrets += index_secrets(settings.index)
    declared = settings.project.secret_env
    for name, source in settings.project.training_sources.items():
        if value := environment.get(name):
            is_declared = name in declared or source in declared
            secrets += secret_parts(name, value, declared=is_declared) + secret_parts(source, value)
    for name in declared:
        secrets += secret_parts(name, settings.variables.get(name) or "", declared=True)
    for address in (*environment.values(), mlflow.tracking_uri):
        secrets += login_parts(address)
    return [*secrets, *(secret.strip() for secret in secrets)]


def _basic(user: str, password: str) -> str:
    """As HTTP has it: a short password cannot be recognised in it otherwise."""
    return base64.b64encode(f"{user}:{password}".encode(errors="surrogateescape")).decode()
