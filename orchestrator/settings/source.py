"""One pipeline's settings, read at the moment of use: defs.yaml, the environment, `.env`, a secrets directory.

A code location with no setting at all still loads; what is missing or wrong is named, all at once,
when a sensor ticks or a run starts, before any money is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from orchestrator.errors import SettingsError
from orchestrator.settings import variables
from orchestrator.settings.groups import (
    Group,
    JenkinsSettings,
    MachineSettings,
    MlflowSettings,
    PrivateIndexSettings,
    ProjectSettings,
    SettingsGroup,
    SshSettings,
    env_name,
    fault_of_committed,
    fault_of_name,
    is_secret,
)

REGION = ("AWS_DEFAULT_REGION", "AWS_REGION")
"""boto3's own variables, which no setting of ours covers; a training works in the region of its instance."""


OWN_SECRETS = (
    *("JENKINS_TOKEN", "KEY_PASSPHRASE", "UI_TOKEN", "DAGSTER_POSTGRES_URL", "CELERY_BROKER_URL"),
    *("CELERY_RESULT_BACKEND", "FLOWER_URL", "OIDC_CLIENT_SECRET", "OAUTH_CLIENT_SECRET"),
)
"""What is secret of the orchestrator itself; no training gets it."""

HANDED_WITH_A_WARNING = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
"""The orchestrator's own logins that projects ask for."""


@dataclass(frozen=True)
class SettingsSource:
    """One pipeline's settings: the environment, and what its defs.yaml says instead.

    Attributes:
        pipeline: name for error messages.
        values: setting → value, instead of the environment variable of that name.
        from_env: setting → the environment variable to read it from instead.
        lookup: reads one variable; None when it is not set. Default: the environment, `.env`, the secrets directory.
    """

    pipeline: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    from_env: Mapping[str, str] = field(default_factory=dict)
    lookup: Callable[[str], str | None] = variables.lookup

    def __post_init__(self) -> None:
        for name in (*self.values, *self.from_env):
            self._refuse(fault_of_name(name))
        for name, value in self.values.items():
            self._refuse(fault_of_committed(name, value))

    def _refuse(self, fault: str | None) -> None:
        if fault:
            raise SettingsError(f"defs.yaml of pipeline {self.pipeline!r}: {fault}")

    def raw(self, name: str) -> str | None:
        """The text of one setting; None when it is unset or empty."""
        return self._texts([name])[name]

    def variables(self, names: Sequence[str]) -> Mapping[str, str | None]:
        """Variables as this pipeline has them, settings or not; None: not set."""
        asked = {name: self.from_env.get(name, name) for name in names if name not in self.values}
        found = self._found(list(asked.values()))
        return {name: self.values[name] if name in self.values else found[asked[name]] for name in names}

    def _found(self, names: Sequence[str]) -> Mapping[str, str | None]:
        return (
            variables.lookup_all(names)
            if self.lookup is variables.lookup
            else {name: self.lookup(name) for name in names}
        )

    def _texts(self, names: Sequence[str]) -> dict[str, str | None]:
        return {name: text or None for name, text in self.variables(names).items()}

    def read(self, group: type[Group]) -> Group:
        """Read one group.

        Raises:
            SettingsError: names everything that is missing or wrong in it.
        """
        return self.read_all(group)[0]  # type: ignore[return-value]

    def read_all(self, *groups: type[SettingsGroup]) -> tuple[SettingsGroup, ...]:
        """Read several groups, so that one error names the faults of all of them.

        Raises:
            SettingsError: names everything that is missing or wrong.
        """
        faults: list[str] = []
        read: list[SettingsGroup] = []
        for group in groups:
            fields = group.model_fields
            texts = self._texts([env_name(info) for info in fields.values()])
            given = {key: text for key, info in fields.items() if (text := _plain(info, texts[env_name(info)]))}
            try:
                read.append(group.model_validate(given))
            except ValidationError as error:
                faults += [self._fault(group, dict(fault)) for fault in error.errors()]
        if faults:
            where = f" of pipeline {self.pipeline!r}" if self.pipeline else ""
            raise SettingsError(
                f"the settings{where} cannot be used: "
                + "; ".join(faults)
                + ". Put them into the environment or .env (.env.example explains each), then restart or reload."
            )
        return tuple(read)

    def _fault(self, group: type[SettingsGroup], fault: dict[str, Any]) -> str:
        if not fault["loc"]:
            return str(fault["msg"]).removeprefix("Value error, ")
        info = group.model_fields[str(fault["loc"][0])]
        name = self.from_env.get(env_name(info), env_name(info))
        if fault["type"] == "missing":
            return f"{name} is not set ({info.description})"
        value = "" if is_secret(info) else f"={fault['input']!r}"
        return f"{name}{value} is wrong: {str(fault['msg']).removeprefix('Value error, ')}"


def _plain(info: FieldInfo, text: str | None) -> str | None:
    """The text without the blanks and line ends around it, which files and copying leave; a secret's are its own."""
    return text if text is None or is_secret(info) else text.strip()


@dataclass(frozen=True)
class PipelineSettings:
    """All that a run of one pipeline needs, read and checked.

    Attributes:
        variables: what TRAINING_ENV takes its values from, what SECRET_ENV names, the AWS region, and what is secret
            of the orchestrator itself; None: not set.
    """

    jenkins: JenkinsSettings
    machine: MachineSettings
    ssh: SshSettings
    mlflow: MlflowSettings
    project: ProjectSettings
    index: PrivateIndexSettings = field(default_factory=PrivateIndexSettings)
    variables: Mapping[str, str | None] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, settings: SettingsSource) -> Self:
        """Read everything that a run needs.

        Raises:
            SettingsError: names everything that is missing or wrong.
        """
        groups = (
            *(JenkinsSettings, MachineSettings, SshSettings, MlflowSettings),
            *(ProjectSettings, PrivateIndexSettings),
        )
        values = cls(*settings.read_all(*groups))  # type: ignore[arg-type]
        if values.machine.training_user == values.ssh.user:
            raise SettingsError(
                f"TRAINING_USER={values.ssh.user} is SSH_USER, the login that keeps the training's deadline: name "
                "another one, such as trainer, or leave it out"
            )
        project = values.project
        wanted = [
            *REGION,
            *OWN_SECRETS,
            *HANDED_WITH_A_WARNING,
            *project.secret_env,
            *project.training_sources.values(),
        ]
        return replace(values, variables=settings.variables(list(dict.fromkeys(wanted))))
