"""The launcher that RUN_LAUNCHER names."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from dagster import DefaultRunLauncher
from dagster._config import process_config, resolve_to_config_type
from dagster._core.launcher import RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import GROUPS, LauncherSettings, UiSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import AWS, SECRETS_DIR, lookup_all

EXTRAS = {
    "celery": ("celery", "dagster_celery"),
    "docker": ("docker", "dagster_docker"),
    "ecs": ("", "dagster_aws"),
    "kubernetes": ("kubernetes", "dagster_k8s"),
}
"""Launcher → the extra of ours that brings it (none: it is always there), and the package that is looked for."""


CLEAN_UP_SECONDS = 120
"""How long a container that is asked to end gets; as much as dagster.yaml gives a cancel."""


class Chosen(RunLauncher[Any], ConfigurableClass):
    """Stands in dagster.yaml for whichever launcher the settings choose; there is never an instance of it."""

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """It has no configuration: the settings say it all."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Any:
        """The launcher itself.

        Raises:
            SettingsError: a setting is wrong, or a package is missing.
        """
        return chosen(SettingsSource().read(LauncherSettings), inst_data)


def chosen(settings: LauncherSettings, inst_data: ConfigurableClassData | None = None) -> RunLauncher[Any]:
    """The launcher that these settings choose.

    Args:
        settings: what to choose by.
        inst_data: what Dagster has read of its dagster.yaml.

    Raises:
        SettingsError: a setting is wrong, or a package is missing.
    """
    kind = settings.chosen
    if kind in EXTRAS:
        extra, package = EXTRAS[kind]
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"RUN_LAUNCHER={kind} needs the package {package}, which is not installed; "
                + (f"install orchestrator[{extra}]" if extra else f"install {package}")
            )
    return _MAKERS[kind](settings, inst_data)


_Maker = Callable[[LauncherSettings, "ConfigurableClassData | None"], "RunLauncher[Any]"]


def _local(_settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    return DefaultRunLauncher(inst_data=inst_data)


def _celery(settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    from orchestrator.launchers.celery import WorkersRunLauncher, app_options

    return WorkersRunLauncher(**app_options(settings), inst_data=inst_data)


def _docker(settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    from dagster_docker import DockerRunLauncher

    # A run's container needs our settings, wherever they come from, and the time to terminate its instance. What it
    # leaves would hold those settings, secrets included, for whoever may inspect it. The image's health check is for
    # `serve`: a run would be found ill by it, and ended by what looks after ill containers.
    kwargs = {"stop_timeout": CLEAN_UP_SECONDS, "auto_remove": True, "healthcheck": {"test": ["NONE"]}}
    config = {**settings.config}
    given = config.get("env_vars", [])
    if isinstance(given, list):  # what is something else is refused below
        has_files = any(str(entry).partition("=")[0] == SECRETS_DIR for entry in given)
        config["env_vars"] = [*_settings_of_runs(secrets_too=not has_files), *given]
    if isinstance(given := config.get("container_kwargs", {}), dict):
        config["container_kwargs"] = {**kwargs, **given}
    return _configured(DockerRunLauncher, settings.model_copy(update={"config": config}), inst_data)


def _settings_of_runs(*, secrets_too: bool) -> list[str]:
    """The settings of runs, as variables.

    Args:
        secrets_too: also what stands in files of the secrets directory.
    """
    groups = [group for group in GROUPS if group not in (UiSettings, LauncherSettings)]
    names = [*AWS, *(name for group in groups for name in group.names())]
    found = lookup_all(names, secrets_too=secrets_too)
    return [f"{name}={text}" for name, text in found.items() if text]


def _ecs(settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    from dagster_aws.ecs import EcsRunLauncher

    return _configured(EcsRunLauncher, settings, inst_data)


def _kubernetes(settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    from dagster_k8s import K8sRunLauncher

    return _configured(K8sRunLauncher, settings, inst_data)


_MAKERS: Mapping[str, _Maker] = {
    "local": _local,
    "celery": _celery,
    "docker": _docker,
    "ecs": _ecs,
    "kubernetes": _kubernetes,
}


def _configured(launcher: Any, settings: LauncherSettings, inst_data: ConfigurableClassData | None) -> RunLauncher[Any]:
    """One of Dagster's own launchers, with RUN_LAUNCHER_CONFIG as its own schema reads it."""
    result = process_config(resolve_to_config_type(launcher.config_type()), dict(settings.config))
    if not result.success:
        faults = "; ".join(" ".join(error.message.split()) for error in result.errors or ())
        raise SettingsError(f"RUN_LAUNCHER_CONFIG is wrong for {launcher.__name__}: {faults}")
    made: RunLauncher[Any] = launcher.from_config_value(inst_data, result.value)
    return made
