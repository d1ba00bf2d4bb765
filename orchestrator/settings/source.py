"""One pipeline's settings, read from the environment at the moment of use.

A code location with no setting at all still loads; what is missing or wrong is named, all at once,
when a sensor ticks or a run starts, before any money is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import dagster as dg
from pydantic import ValidationError

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import (
    Group,
    JenkinsSettings,
    MachineSettings,
    MlflowSettings,
    ProjectSettings,
    SettingsGroup,
    SshSettings,
    env_name,
    fault_of_committed,
    fault_of_name,
    is_secret,
)


def _environment(name: str) -> str | None:
    return dg.EnvVar(name).get_value()


@dataclass(frozen=True)
class Settings:
    """One pipeline's settings: the environment, and what its defs.yaml says instead.

    Attributes:
        pipeline: name for error messages.
        values: setting → value, instead of the environment variable of that name.
        from_env: setting → the environment variable to read it from instead.
        lookup: reads one variable of the environment; None when it is not set.
    """

    pipeline: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    from_env: Mapping[str, str] = field(default_factory=dict)
    lookup: Callable[[str], str | None] = _environment

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
        if name in self.values:
            return self.values[name] or None
        return self.lookup(self.from_env.get(name, name)) or None

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
            given = {key: text for key, info in fields.items() if (text := self.raw(env_name(info))) is not None}
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
        shown = "" if is_secret(info) else f"={fault['input']!r}"
        return f"{name}{shown} is wrong: {str(fault['msg']).removeprefix('Value error, ')}"


@dataclass(frozen=True)
class PipelineSettings:
    """All that a run of one pipeline needs, read and checked."""

    jenkins: JenkinsSettings
    machine: MachineSettings
    ssh: SshSettings
    mlflow: MlflowSettings
    project: ProjectSettings

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Read everything that a run needs.

        Raises:
            SettingsError: names everything that is missing or wrong.
        """
        groups = (JenkinsSettings, MachineSettings, SshSettings, MlflowSettings, ProjectSettings)
        return cls(*settings.read_all(*groups))  # type: ignore[arg-type]
