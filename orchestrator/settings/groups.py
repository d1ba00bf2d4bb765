"""Every setting: its name, meaning, default and bounds."""

from __future__ import annotations

import difflib
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo

from orchestrator.settings.hosts import HostPort, Origin
from orchestrator.settings.people import AllowList, TrustedProxy, issuer_fault
from orchestrator.settings.private_index import as_pasted


def _words(value: object) -> object:
    """Turn `"a, b"` into `("a", "b")`."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _not_empty(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words:
        raise ValueError("it names nothing; write one, or several with commas between them")
    return words


def _git_hosts(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if bad := [pattern for pattern in patterns if not re.fullmatch(r"[\w.*?\[\]!:-]+", pattern) or "://" in pattern]:
        raise ValueError(f"{bad[0]!r} is no name of a host; write for example github.com,*.example.com")
    return tuple(pattern.lower().rstrip(".") for pattern in patterns)


def _markets(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in MARKETS]:
        raise ValueError(f"{unknown[0]!r} is neither spot nor on-demand")
    return names


def _json_structure(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise ValueError(f'is not JSON ({error}); write for example {{"alpha": "0.5"}}') from error
    if not isinstance(parsed, dict):
        raise ValueError('is not a JSON object; write for example {"alpha": "0.5"}')
    return parsed


def _json_object(value: object) -> object:
    parsed = _json_structure(value)
    if not isinstance(value, str) or not isinstance(parsed, dict):
        return value
    return {str(key): text if isinstance(text, str) else json.dumps(text) for key, text in parsed.items()}


@dataclass(frozen=True)
class ModelChoice:
    """What MODEL_RUN says.

    Attributes:
        metric: by which the best run is chosen.
        highest: whether its highest value is the best.
    """

    kind: Literal["root", "last", "best"]
    metric: str = ""
    highest: bool = True

    @classmethod
    def parse(cls, text: str) -> ModelChoice:
        """Read `root`, `last` or `best:METRIC:max`; a metric's name may hold colons itself.

        Raises:
            ValueError: it is none of these.
        """
        if text in ("root", "last"):
            return cls(kind="root" if text == "root" else "last")
        found = re.fullmatch(r"best:(.+):(max|min)", text)
        if not found:
            raise ValueError("it is none of root, last, best:METRIC:max and best:METRIC:min, such as best:accuracy:max")
        return cls(kind="best", metric=found[1].strip(), highest=found[2] == "max")

    def __str__(self) -> str:
        return self.kind if self.kind != "best" else f"best:{self.metric}:{'max' if self.highest else 'min'}"


def _model_choice(text: str) -> str:
    return str(ModelChoice.parse(text.strip()))


def _host_names(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_host_name(word) for word in words)


def _host_name(word: str) -> str:
    host = HostPort.parse(word) or HostPort.parse(f"[{word}]")
    if host is None or host.port is not None:
        raise ValueError(f"{word!r} is not a host name; write names only, without scheme, port or *")
    return host.name


def _frame_ancestors(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_frame_ancestor(word) for word in " ".join(words).split()))


def _frame_ancestor(word: str) -> str:
    if word.strip("'").lower() == "self":
        return "'self'"
    if not Origin.parse(word.replace("://*.", "://")):
        raise ValueError(f"{word!r} is neither 'self' nor an origin such as https://huggingface.co")
    return word.lower()


SHORTEST_TOKEN = 32


def _ui_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if len(text) < SHORTEST_TOKEN:
        raise ValueError(
            f"it has fewer than {SHORTEST_TOKEN} characters; make one with `openssl rand -hex 32`, for instance"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("it holds characters other than ASCII letters, digits and signs, which no header can carry")
    return token


def _allowed(words: tuple[str, ...]) -> tuple[str, ...]:
    AllowList.parse(words)
    return words


def _trusted_proxy(text: str) -> str:
    TrustedProxy.parse(text)
    return text


def _s3_place(text: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", text):
        raise ValueError("a place in S3 looks like s3://bucket/prefix")
    return text


def _issuer(text: str) -> str:
    if fault := issuer_fault(text):
        raise ValueError(fault)
    return text.rstrip("/")


def _redis_url(url: SecretStr) -> SecretStr:
    if not re.match("rediss?://.", url.get_secret_value()):
        raise ValueError("it is no address of a Redis: write redis://:password@host:6379/0, or rediss:// for TLS")
    return url


def _http_url(url: SecretStr) -> SecretStr:
    if not re.match("https?://[^/]", url.get_secret_value()):
        raise ValueError("it is no address: write http://localhost:5555, for instance")
    return url


def _linux_user(name: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", name):
        raise ValueError("it is no name of a Linux user: lower-case letters, digits, _ and -, at most 32 of them")
    if name == "root":
        raise ValueError("root can reach everything: name a login that the image does not use, such as trainer")
    return name


MARKETS = ("spot", "on-demand")

Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
SomeWords = Annotated[Words, AfterValidator(_not_empty)]
Markets = Annotated[SomeWords, AfterValidator(_markets)]
GitHosts = Annotated[Words, AfterValidator(_git_hosts)]
Parameters = Annotated[Mapping[str, str], BeforeValidator(_json_object)]
Prices = Annotated[
    Mapping[str, Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]], BeforeValidator(_json_object)
]
LinuxUser = Annotated[str, AfterValidator(_linux_user)]
ModelRun = Annotated[str, AfterValidator(_model_choice)]
HostNames = Annotated[Words, AfterValidator(_host_names)]
FrameAncestors = Annotated[Words, AfterValidator(_frame_ancestors)]
Allowed = Annotated[Words, AfterValidator(_allowed)]
ProxyText = Annotated[str, AfterValidator(_trusted_proxy)]
S3Place = Annotated[str, AfterValidator(_s3_place)]
Issuer = Annotated[str, AfterValidator(_issuer)]
HttpUrl = Annotated[SecretStr, AfterValidator(_http_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Structure = Annotated[Mapping[str, Any], BeforeValidator(_json_structure)]
UiToken = Annotated[SecretStr, AfterValidator(_ui_token)]

PASSWORD_IN_ADDRESS = re.compile(r"""://[^/?#@:\s"']*:[^/?#\s"']*@""")
"""As in https://user:password@host."""

LONGEST_MINUTES = 365 * 24 * 60
"""More than a year is a slip of the pen, and no deadline can lie beyond the year 9999."""


def setting(name: str, meaning: str, default: Any = ..., **constraints: Any) -> Any:
    """Declare one setting: the field is filled from the environment variable `name`.

    Args:
        name: the environment variable.
        meaning: one sentence for `.env.example` and the documentation.
        default: the value when the variable is unset or empty; without one the setting is required.
        constraints: what else pydantic's `Field` takes (`gt`, `le`, ...).
    """
    return Field(default, description=meaning, json_schema_extra={"env": name}, **constraints)


def env_name(field_info: FieldInfo) -> str:
    """The environment variable that fills this field."""
    extra = field_info.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError("settings are declared with setting()")
    return str(extra["env"])


class SettingsGroup(BaseModel):
    """Settings that are used together.

    Attributes:
        title: heading in `.env.example`.
        per_pipeline: whether a pipeline's defs.yaml may differ from the environment in them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: ClassVar[str]
    per_pipeline: ClassVar[bool] = True

    @classmethod
    def names(cls) -> list[str]:
        """The environment variables of this group, in order of declaration."""
        return [env_name(info) for info in cls.model_fields.values()]


class JenkinsSettings(SettingsGroup):
    """The Jenkins server and the job whose builds are trained."""

    title = "Jenkins"
    url: str = setting("JENKINS_URL", "Jenkins' own address, such as https://jenkins.example.com/")
    user: str = setting("JENKINS_USER", "the user whose API token follows")
    token: SecretStr = setting("JENKINS_TOKEN", "an API token of that user (Jenkins: user > Security > API Token)")
    job: str = setting(
        "JENKINS_JOB_NAME", "the job; folders and multibranch projects as in team/project; or the address of its page"
    )
    ca_bundle: Path | None = setting(
        "JENKINS_CA_BUNDLE", "PEM file with the CA of a Jenkins whose certificate is signed privately", None
    )
    timeout_seconds: float | None = setting(
        "JENKINS_TIMEOUT_SECONDS",
        "how long one answer of Jenkins may take; default: 12. In a tick of the sensor, which needs two answers for a "
        "new build and which Dagster ends after 60 s, an answer gets at most what is left of 50 s",
        None,
        ge=1,
        le=600,
        allow_inf_nan=False,
    )
    train_branches: Words = setting(
        "TRAIN_BRANCHES",
        "branches to train, a comma list of names and patterns such as main,release/* (* stands for anything, slashes "
        "too); default: of a multibranch project the primary branch, of a plain job all builds. A change request needs "
        "a pattern with all that stands before its number (PR-*), a mere * leaves it out; what is left out can be "
        "launched by hand",
        (),
    )
    build_parameters: Words = setting(
        "BUILD_PARAMETERS",
        "parameters of a Jenkins build to keep in its record, a comma list of names and patterns such as EPOCHS,DATA_*"
        "; default: none, because a record is shown to everybody and a token may be a plain parameter",
        (),
    )
    hosts: GitHosts = setting(
        "MLPROJECT_HOSTS",
        "Git hosts that a build's own remote may be on, a comma list of names and patterns such as "
        "github.com,*.example.com; default: the host of the primary branch's newest success when this pipeline first "
        "saw one. What MLPROJECT_URI names is always allowed",
        (),
    )
    train_unstable: bool = setting("TRAIN_UNSTABLE", "true: UNSTABLE builds are trained too, not just SUCCESS", False)
    breaker_minutes: float = setting(
        "BREAKER_MINUTES",
        "after three builds in a row that failed alike before their training began, only one is tried every so many "
        "minutes, until one goes well or a setting is changed; 0: each is launched",
        30.0,
        ge=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )


class MachineSettings(SettingsGroup):
    """The EC2 instance that a build is trained on."""

    title = "EC2"
    ami: str = setting("AMI_ID", "the image of the training instances, with mlflow (and Docker, conda, ...) installed")
    instance_types: SomeWords = setting(
        "INSTANCE_TYPE",
        "instance type; a comma list is tried in order when AWS has no capacity",
        ("t3.medium",),
    )
    types_allowed: Words = setting(
        "INSTANCE_TYPES_ALLOWED",
        "further instance types that the launchpad may ask for in one run, a comma list; default: those of "
        "INSTANCE_TYPE only",
        (),
    )
    key_pair: str = setting("KEY_PAIR_NAME", "EC2 key pair that is put on the instance for the login")
    security_group: str = setting("SECURITY_GROUP_ID", "security group that lets us in on SSH_PORT")
    subnets: Words = setting(
        "SUBNET_ID", "subnet; a comma list is tried in order; default: the default VPC's choice", ()
    )
    instance_profile: str | None = setting(
        "INSTANCE_PROFILE",
        "IAM instance profile (name or ARN) that the training uses, e.g. for S3 artifacts",
        None,
    )
    market: Markets = setting(
        "INSTANCE_MARKET", "on-demand or spot; `spot,on-demand` tries one after the other", ("on-demand",)
    )
    capacity_patience_minutes: float = setting(
        "CAPACITY_PATIENCE_MINUTES",
        "how long a build waits, in its place of the queue, for an instance that AWS does not have now; a quota that "
        "our own instances of these types use up is waited for until they end; 0: no waiting",
        60,
        ge=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )
    root_volume_gb: int | None = setting(
        "ROOT_VOLUME_GB",
        "size of the encrypted gp3 root volume, in GB, where the image's own is smaller; default: the image's own "
        "size, and at least 30",
        None,
        ge=1,
        le=16384,
    )
    ready_when: Literal["status-checks", "ssh"] = setting(
        "READY_WHEN",
        "status-checks: wait for EC2's 2/2; ssh: only until SSH answers (saves minutes)",
        "status-checks",
    )
    ready_minutes: float = setting(
        "READY_MINUTES",
        "minutes that an instance may take until it can be used",
        15,
        gt=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )
    address: Literal["auto", "public", "private"] = setting(
        "INSTANCE_ADDRESS", "which address we connect to; auto: the public one if there is one", "auto"
    )
    training_user: LinuxUser | None = setting(
        "TRAINING_USER",
        "a login of its own for the training, without sudo, made by cloud-init and used through `sudo -n`: "
        "it reaches neither its supervisor nor its machine's deadline. It protects nothing where it may use Docker "
        "(docker_env), which is as good as root; default: the training runs as SSH_USER",
        None,
    )
    hourly_usd: float | None = setting(
        "INSTANCE_HOURLY_USD",
        "price in USD of an hour of the first type of INSTANCE_TYPE, for cost figures and ceilings; default: AWS's "
        "price list",
        None,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
    )
    prices: Prices = setting(
        "INSTANCE_PRICES",
        'prices in USD of an hour, by instance type, a JSON object such as {"g5.xlarge": 1.006}; of others, AWS\'s '
        "price list is asked",
        {},
    )
    max_usd_per_run: float | None = setting(
        "MAX_USD_PER_RUN",
        "most that one run may cost in USD, by the price of its instance type and its deadline; else nothing is "
        "launched. With one of these three, what costs an unknown price is refused",
        None,
        ge=0,
        allow_inf_nan=False,
    )
    max_usd_per_day: float | None = setting(
        "MAX_USD_PER_DAY",
        "most that the runs of this installation may cost in a day (UTC): what MLflow's runs have as "
        "orchestrator.cost_usd, and the worst case of what is live",
        None,
        ge=0,
        allow_inf_nan=False,
    )
    max_usd_per_month: float | None = setting(
        "MAX_USD_PER_MONTH", "likewise in a calendar month (UTC)", None, ge=0, allow_inf_nan=False
    )
    deployment: str = setting(
        "ORCHESTRATOR_DEPLOYMENT",
        "tells two installations in one AWS account apart; default: the host name (a container's does not last)",
        "",
        validate_default=True,
    )

    def known_price(self, instance_type: str) -> float | None:
        """What the settings say that an hour of this type costs, in USD; None: nothing."""
        first = self.hourly_usd if instance_type == self.instance_types[0] else None
        return self.prices.get(instance_type, first)

    def model_post_init(self, _context: Any) -> None:
        """Fill the deployment's default: the host name."""
        if not self.deployment:
            object.__setattr__(self, "deployment", socket.gethostname())


class SshSettings(SettingsGroup):
    """The login on the instance."""

    title = "SSH"
    user: str = setting("SSH_USER", "login on the instance", "ubuntu")
    port: int = setting("SSH_PORT", "port of its SSH server; 443: it is made to listen there", 22, ge=1, le=65535)
    key_path: Path = setting("KEY_PATH", "private key file of KEY_PAIR_NAME (PEM or OpenSSH format)")
    key_passphrase: SecretStr | None = setting("KEY_PASSPHRASE", "passphrase of that file, if it has one", None)
    host_keys: Literal["planted", "accept-new", "known_hosts"] = setting(
        "SSH_HOST_KEYS",
        "how the host is verified: planted (a key given to it through cloud-init), accept-new or known_hosts",
        "planted",
    )
    known_hosts: Path | None = setting(
        "SSH_KNOWN_HOSTS", "the file for SSH_HOST_KEYS=known_hosts; default: ~/.ssh/known_hosts", None
    )


class MlflowSettings(SettingsGroup):
    """Where runs are recorded."""

    title = "MLflow"
    tracking_uri: str = setting(
        "MLFLOW_TRACKING_URI",
        "the MLflow tracking server, http:// or https://, or the ARN of SageMaker's managed MLflow",
    )
    experiment_id: str = setting("MLFLOW_EXPERIMENT_ID", "ID of the experiment that holds the runs")
    username: str | None = setting("MLFLOW_TRACKING_USERNAME", "user, when the server asks for one", None)
    password: SecretStr | None = setting("MLFLOW_TRACKING_PASSWORD", "password of that user", None)
    token: SecretStr | None = setting("MLFLOW_TRACKING_TOKEN", "bearer token, instead of user and password", None)
    workspace: str | None = setting(
        "MLFLOW_WORKSPACE",
        "workspace that the experiment is in, of a server with --enable-workspaces (MLflow 3.10 and newer); the "
        "training gets it, too",
        None,
    )
    ui_url: str | None = setting(
        "MLFLOW_UI_URL",
        "address of MLflow's pages for people, in links, where it differs; such as of an MLflow before 3.12 that has a "
        "--static-prefix",
        None,
    )
    ca_bundle: Path | None = setting(
        "MLFLOW_TRACKING_SERVER_CERT_PATH", "PEM file with the CA of a privately signed MLflow server", None
    )
    client_certificate: Path | None = setting(
        "MLFLOW_TRACKING_CLIENT_CERT_PATH",
        "PEM file with the certificate that we show an MLflow server which asks for one, and its key, which has no "
        "passphrase; the training gets a copy",
        None,
    )
    aws_sigv4: bool = setting(
        "MLFLOW_TRACKING_AWS_SIGV4",
        "true: requests are signed with AWS's Signature Version 4, as an API Gateway in front of MLflow asks for; the "
        "training signs its own, with the instance's role (INSTANCE_PROFILE) and the package requests-auth-aws-sigv4",
        False,
    )
    sagemaker_endpoint: str | None = setting(
        "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT",
        "address of SageMaker's managed MLflow where it is not AWS's public one; the training gets it, too",
        None,
    )
    patience_minutes: float = setting(
        "MLFLOW_PATIENCE_MINUTES",
        "how long a finished training waits for an MLflow that is away",
        10,
        ge=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )
    keep_versions: int = setting(
        "KEEP_VERSIONS",
        "how many versions of its registered model a pipeline with a `champion` keeps, the newest; what has an alias, "
        "was promoted or is rejected is kept besides; the runs and their models stay; 0: all",
        100,
        ge=0,
    )
    uri_on_instance: str | None = setting(
        "MLFLOW_TRACKING_URI_ON_INSTANCE",
        "the server's address as the instance sees it, where it differs",
        None,
    )
    username_on_instance: str | None = setting(
        "MLFLOW_TRACKING_USERNAME_ON_INSTANCE",
        "user that the training gets instead of ours; best one that may edit this experiment and nothing else",
        None,
    )
    password_on_instance: SecretStr | None = setting(
        "MLFLOW_TRACKING_PASSWORD_ON_INSTANCE", "password of that user", None
    )
    token_on_instance: SecretStr | None = setting(
        "MLFLOW_TRACKING_TOKEN_ON_INSTANCE", "bearer token that the training gets, instead of user and password", None
    )
    client_certificate_on_instance: Path | None = setting(
        "MLFLOW_TRACKING_CLIENT_CERT_PATH_ON_INSTANCE",
        "PEM file on this machine, of which the training gets a copy instead of ours",
        None,
    )


class ProjectSettings(SettingsGroup):
    """What `mlflow run` is asked to do."""

    title = "Training"
    uri: str | None = setting(
        "MLPROJECT_URI", "the MLflow project, `#subdir` allowed; default: the build's own Git remote", None
    )
    entry_point: str = setting("MLPROJECT_ENTRY_POINT", "entry point of the project", "main")
    parameters: Parameters = setting("MLPROJECT_PARAMETERS", "its parameters, a JSON object", {})
    env_manager: Literal["local", "virtualenv", "uv", "conda"] | None = setting(
        "MLPROJECT_ENV_MANAGER", "local, virtualenv, uv or conda; default: as the project says", None
    )
    build_image: bool = setting(
        "MLPROJECT_BUILD_IMAGE",
        "true: a docker_env project's image is built on the instance, with the commit in it; false: the code is "
        "whatever the image holds (other projects have no image)",
        True,
    )
    docker_args: Parameters = setting(
        "MLPROJECT_DOCKER_ARGS",
        'arguments of `docker run`, a JSON object, such as {"gpus": "all", "read-only": true}: true is a flag, false '
        "leaves it out; `init` is true unless it says otherwise",
        {},
    )
    training_env: Words = setting(
        "TRAINING_ENV",
        "names of variables to hand to the training, a comma list; NAME=SOURCE hands it the value of SOURCE as NAME, "
        "such as AWS_ACCESS_KEY_ID=TRAINING_KEY_ID (it always gets where MLflow is, and the AWS region)",
        (),
    )
    secret_env: Words = setting(
        "SECRET_ENV",
        "names of variables whose values are hidden in the training's output, a comma list; hidden anyway is what "
        "looks like a secret in TRAINING_ENV",
        (),
    )
    max_log_mb: float = setting(
        "MAX_LOG_MB",
        "MB of a training's output in its log here; of more, the beginning and the end stay, and the rest becomes an "
        "artifact of the MLflow run",
        100,
        ge=1,
        le=100_000,
        allow_inf_nan=False,
    )
    max_minutes: float = setting(
        "MAX_TRAINING_MINUTES",
        "hard deadline of one training, kept by us and by the machine itself",
        720,
        gt=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )
    model_check_minutes: float = setting(
        "MODEL_CHECK_MINUTES",
        "how long loading the model may take, in the training's environment on the instance, where defs.yaml has "
        "`checks` or a `champion`; 0: its files are looked at only",
        10,
        ge=0,
        le=LONGEST_MINUTES,
        allow_inf_nan=False,
    )
    instance_losses: int = setting(
        "INSTANCE_LOSSES", "how often a training begins anew when AWS takes its instance away", 2, ge=0
    )
    retry_oom_on_larger: bool = setting(
        "RETRY_OOM_ON_LARGER",
        "true: a training that the kernel killed for lack of memory begins anew, once, on the next type of "
        "INSTANCE_TYPE that has more of it",
        False,
    )
    mlflow_command: str = setting(
        "MLFLOW_COMMAND", "the mlflow program on the instance, if it is not on PATH", "mlflow"
    )
    model_run: ModelRun | None = setting(
        "MODEL_RUN",
        "which of the MLflow runs that a training makes is the model: root (the first, which we create), last, or "
        "best:METRIC:max or best:METRIC:min; default: root if it has a metric or a model, else the last that has",
        None,
    )

    @property
    def model_choice(self) -> ModelChoice | None:
        """MODEL_RUN."""
        return ModelChoice.parse(self.model_run) if self.model_run else None

    @property
    def training_sources(self) -> dict[str, str]:
        """TRAINING_ENV: the name of each variable that the training gets → the variable whose value it is."""
        pairs = [entry.partition("=") for entry in self.training_env]
        return {name.strip(): (source if separator else name).strip() for name, separator, source in pairs}


class PrivateIndexSettings(SettingsGroup):
    """Where a training installs its packages from."""

    title = "Private packages"
    url: str | None = setting(
        "PRIVATE_INDEX_URL",
        "package index of the trainings, instead of PyPI, such as https://nexus.example.com/repository/pypi/simple; "
        "pip, uv, and conda's pip install from it and from nowhere else, in a container, too",
        None,
    )
    user: str | None = setting("PRIVATE_INDEX_USER", "user, when the index asks for one", None)
    password: SecretStr | None = setting(
        "PRIVATE_INDEX_PASSWORD", "password or token of that user; best of one that may read and nothing else", None
    )

    @model_validator(mode="before")
    @classmethod
    def _as_pasted(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See `private_index.as_pasted`; faults are of the group, because those of a field show its text."""
        return as_pasted(**given) if given.keys() <= {"url", "user", "password"} else given


class QueueSettings(SettingsGroup):
    """How much goes on at once."""

    title = "Queue"
    per_pipeline = False
    max_instances: int | None = setting(
        "MAX_INSTANCES",
        "most instances at once, set when `orchestrator serve` starts; while it runs it can be changed in the UI "
        "(Deployment > Concurrency > training_instances); default: dagster.yaml's default_limit. "
        "Its max_concurrent_runs bounds all runs, these too",
        None,
        ge=1,
    )


class StorageSettings(SettingsGroup):
    """Where Dagster keeps its runs, events and logs."""

    title = "Storage"
    per_pipeline = False
    postgres_url: SecretStr | None = setting(
        "DAGSTER_POSTGRES_URL",
        "PostgreSQL for runs, events and schedules, as Neon, RDS or Heroku show it, such as "
        "postgresql://user:password@host:5432/database?sslmode=require; default: SQLite in DAGSTER_HOME",
        None,
    )
    logs_s3: S3Place | None = setting(
        "COMPUTE_LOGS_S3",
        "where the output of each step is kept, so that it outlives this machine, such as s3://bucket/prefix; "
        "default: DAGSTER_HOME/storage",
        None,
    )


class LauncherSettings(SettingsGroup):
    """Where the process of each run lives; docs/scaling.md says which to pick."""

    title = "Launcher"
    per_pipeline = False
    kind: Literal["local", "celery", "docker", "ecs", "kubernetes"] | None = setting(
        "RUN_LAUNCHER",
        "local (this machine), celery (machines with `orchestrator worker`), docker, ecs or kubernetes (a container "
        "for each run); default: celery where CELERY_BROKER_URL is set, else local",
        None,
    )
    broker: RedisUrl | None = setting(
        "CELERY_BROKER_URL", "the Redis that the workers take runs from, such as redis://:password@host:6379/0", None
    )
    backend: RedisUrl | None = setting(
        "CELERY_RESULT_BACKEND", "the Redis that says what became of them; default: the same", None
    )
    flower: HttpUrl | None = setting(
        "FLOWER_URL",
        "Celery's page of workers and tasks, which admins then find under /flower, such as "
        "http://user:password@localhost:5555; started with --url-prefix=flower",
        None,
    )
    config: Structure = setting(
        "RUN_LAUNCHER_CONFIG",
        "what Dagster's own launcher for docker, ecs or kubernetes is configured with, a JSON object such as "
        '{"image": "orchestrator:1", "network": "orchestrator"}',
        {},
    )

    @property
    def chosen(self) -> Literal["local", "celery", "docker", "ecs", "kubernetes"]:
        """RUN_LAUNCHER, or what it is by default."""
        return self.kind or ("celery" if self.broker else "local")

    @model_validator(mode="after")
    def _broker_is_there(self) -> Self:
        if self.kind == "celery" and self.broker is None:
            raise ValueError("RUN_LAUNCHER=celery needs CELERY_BROKER_URL, such as redis://:password@host:6379/0")
        return self


class JanitorSettings(SettingsGroup):
    """What the janitor may do with what was left behind."""

    title = "Janitor"
    per_pipeline = False
    dry_run: bool = setting("JANITOR_DRY_RUN", "true: the janitor says what it would do, and does nothing", False)


class UiSettings(SettingsGroup):
    """Who may open the UI of `orchestrator serve`."""

    title = "UI"
    per_pipeline = False
    hosts: HostNames = setting(
        "UI_HOSTS",
        "names under which browsers reach the UI besides localhost and the address it listens on, a comma list "
        "without ports, such as orchestrator.example.com; every other name is refused",
        (),
    )
    login: Literal["token", "off"] = setting(
        "UI_LOGIN", "token; or off, on a loopback address only: no token is asked for", "token"
    )
    token: UiToken | None = setting(
        "UI_TOKEN",
        "the token that opens the UI, 32 characters or more; where others reach the UI, this or one of the logins "
        "below is needed; on loopback the default without any of them is a random one, in the address that is printed",
        None,
    )
    metrics_token: UiToken | None = setting(
        "METRICS_TOKEN",
        "the token with which Prometheus reads /metrics, 32 characters or more, and which opens nothing else; a token "
        "of `orchestrator token add` does, too",
        None,
    )
    users_file: Path | None = setting(
        "ORCHESTRATOR_USERS_FILE",
        "the file of the users of `orchestrator user add`; default: users.json in DAGSTER_HOME",
        None,
    )
    oidc_issuer: Issuer | None = setting(
        "OIDC_ISSUER",
        "address of an OIDC provider that people log in at, such as https://accounts.example.com; what it redirects to "
        "is /login/oidc/callback; Hugging Face's OPENID_PROVIDER_URL, OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET count, too",
        None,
    )
    oidc_client_id: str | None = setting("OIDC_CLIENT_ID", "our client ID at the OIDC provider", None)
    oidc_client_secret: SecretStr | None = setting("OIDC_CLIENT_SECRET", "our client secret there", None)
    oidc_allowed: Allowed = setting(
        "OIDC_ALLOWED",
        "who may log in by OIDC, and as what, a comma list: a verified address (alice@example.com=admin), a domain "
        "(*@example.com=viewer), a preferred_username (alice=launcher), the provider's ID (sub:17=viewer), or all (*)",
        (),
    )
    trusted_proxy: ProxyText | None = setting(
        "TRUSTED_PROXY",
        "a proxy that has asked people to log in: the header in which it says who it is, and the networks that it "
        "comes from, such as X-Forwarded-User 10.0.0.5/32; X-Forwarded-For, -Proto and -Host are believed from there, "
        "too. With networks alone only these are believed",
        None,
    )
    trusted_proxy_allowed: Allowed = setting(
        "TRUSTED_PROXY_ALLOWED", "who may come in through that proxy, and as what, as in OIDC_ALLOWED", ()
    )
    insecure: bool = setting(
        "UI_INSECURE",
        "true: listen on an address other than loopback without TLS, so that whoever reads the network reads the "
        "token (in a container whose port is published on loopback, nobody does)",
        False,
    )
    frame_ancestors: FrameAncestors = setting(
        "UI_FRAME_ANCESTORS", "pages that may show the UI in a frame, a comma list of origins; default: none", ()
    )


class InstallationSettings(SettingsGroup):
    """Where this installation keeps things; read when a process starts."""

    title = "Installation"
    per_pipeline = False
    defs: Path | None = setting(
        "ORCHESTRATOR_DEFS", "the folder of the pipelines, one folder each; default: the package's own `defs`", None
    )
    log_format: Literal["text", "json"] = setting(
        "LOG_FORMAT",
        "text; or json: all processes of `orchestrator serve` and `orchestrator worker` write one JSON object a line, "
        "with timestamp, level, logger, event, and the run and step that it belongs to",
        "text",
    )
    secrets_dir: Path | None = setting(
        "ORCHESTRATOR_SECRETS_DIR",
        "a folder with one file per variable, named after it; read when neither environment nor .env has the variable",
        None,
    )
    space_ports: Words = setting(
        "SPACE_PORTS",
        "in a Hugging Face Space: the ports that it lets out, a comma list; default: 80,443,8080, as its documentation "
        "says",
        (),
    )


Group = TypeVar("Group", bound=SettingsGroup)

GROUPS: tuple[type[SettingsGroup], ...] = (
    JenkinsSettings,
    MachineSettings,
    SshSettings,
    MlflowSettings,
    ProjectSettings,
    PrivateIndexSettings,
    QueueSettings,
    StorageSettings,
    LauncherSettings,
    JanitorSettings,
    UiSettings,
    InstallationSettings,
)


def all_settings() -> dict[str, FieldInfo]:
    """Environment variable → its declaration, for every setting there is."""
    return {env_name(info): info for group in GROUPS for info in group.model_fields.values()}


def per_pipeline(name: str) -> bool:
    """Whether a pipeline's defs.yaml may differ from the environment in this setting."""
    return any(name in group.names() for group in GROUPS if group.per_pipeline)


def is_secret(info: FieldInfo) -> bool:
    """Whether this setting may be neither shown nor written into a defs.yaml."""
    return _holds(info.annotation, SecretStr)


def _holds(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_holds(part, wanted) for part in get_args(annotation))


def fault_of_name(name: str) -> str | None:
    """Why a pipeline's defs.yaml cannot set this, in one sentence; None: it can."""
    known = all_settings()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; .env.example lists them all"
        return f"there is no setting {name}{hint}"
    if not per_pipeline(name):
        return f"{name} cannot stand here: this one belongs into the environment (or .env), it holds for all pipelines"
    return None


def fault_of_committed(name: str, value: str) -> str | None:
    """Why this value may not stand in a file that is committed, in one sentence; None: it may."""
    secret = is_secret(all_settings()[name])
    if not secret and not PASSWORD_IN_ADDRESS.search(value):
        return None
    return (
        f"{name} {'is a secret' if secret else 'holds a password'} and may not stand in a file "
        f"that is committed; write settings_from_env: {{{name}: NAME_OF_A_VARIABLE}} instead"
    )
