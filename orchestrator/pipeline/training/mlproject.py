"""What the commit's own MLproject says against this training, known before money is spent.

As MLflow reads it (`mlflow/projects/_project_spec.py`); what is of another shape than MLflow documents is MLflow's to
refuse. https://mlflow.org/docs/latest/ml/projects/
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from orchestrator.errors import BuildUnusable, SettingsError
from orchestrator.pipeline.training.plan import Plan
from orchestrator.resources import git

_log = logging.getLogger(__name__)

SCRIPTS = (".py", ".sh", ".R")
"""A file that ends so is an entry point by itself."""

_ENVIRONMENTS = ("python_env", "conda_env", "docker_env")


@dataclass(frozen=True)
class EntryPoint:
    """One entry point.

    Attributes:
        required: parameters without a default.
    """

    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class MlProject:
    """What an MLproject file says.

    Attributes:
        entry_points: by name.
        environments: the environments that it names, of which there may be one; file names, but for docker_env.
    """

    entry_points: Mapping[str, EntryPoint] = field(default_factory=dict)
    environments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> MlProject:
        """Read the file.

        Raises:
            ValueError: it is not a YAML mapping; says where.
        """
        try:
            data = yaml.safe_load(content)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # YAMLError is no ValueError, and a date such as 2026-13-45 raises the latter.
            raise ValueError(" ".join(str(error).split()) or "it is nested too deep") from None
        if not isinstance(data, dict):
            raise ValueError("it holds no mapping")
        return cls(
            entry_points={str(name): _entry_point(about) for name, about in _mapping(data.get("entry_points")).items()},
            environments={name: _text(data[name]) for name in _ENVIRONMENTS if data.get(name)},
        )


def _entry_point(about: object) -> EntryPoint:
    parameters = _mapping(_mapping(about).get("parameters"))
    return EntryPoint(
        required=tuple(
            str(name)
            for name, declared in parameters.items()
            if isinstance(declared, str) or (isinstance(declared, dict) and declared.get("default") is None)
        )
    )


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def require_runnable(plan: Plan) -> None:
    """Refuse what `mlflow run` would refuse on the instance, as far as Git lets us look into the commit.

    Raises:
        BuildUnusable: the commit cannot be run as an MLflow project.
        SettingsError: it can, but not as the settings or the launchpad say.
    """
    remote, _, folder = plan.project_uri.partition("#")
    if "." in folder:
        raise SettingsError(
            f"MLPROJECT_URI names the folder {folder!r}, and MLflow takes none with a dot in it: rename it"
        )
    try:
        with git.fetched(remote, plan.version) as commit:
            if commit:
                _look(plan, commit, folder.strip("/"))
    except git.GitFailed as error:
        _log.info(f"Looking into {plan.version} of {remote} is left to the instance, for it failed here: {error}")


def _look(plan: Plan, commit: git.RemoteCommit, folder: str) -> None:
    where = f"{plan.version} of {plan.project_uri.partition('#')[0]}"
    entries = commit.folder(folder)
    if entries is None:
        raise SettingsError(f"There is no folder {folder!r} in {where}: correct what follows the # in MLPROJECT_URI")
    named = [entry for entry in entries if entry.name.lower() == "mlproject" and not entry.is_folder]
    project = MlProject()
    if named:
        # Of two that differ in case, MLflow takes the one that the file system happens to list first.
        content = commit.file(_path(folder, named[0].name)) if len(named) == 1 and not named[0].leads_away else None
        if content is None:
            return
        try:
            project = MlProject.parse(content)
        except ValueError as error:
            raise BuildUnusable(f"{_path(folder, named[0].name)} in {where} cannot be read: {error}") from None
    _require_entry_point(plan, project, where=where, has_file=bool(named), commit=commit, folder=folder)
    for kind, file in project.environments.items():
        if file and kind != "docker_env" and _is_missing(commit, folder, file):
            raise BuildUnusable(f"MLproject in {where} names {kind} {file}, and there is no such file")


def _require_entry_point(
    plan: Plan, project: MlProject, *, where: str, has_file: bool, commit: git.RemoteCommit, folder: str
) -> None:
    name = plan.entry_point
    point = project.entry_points.get(name)
    if point is None:
        if PurePosixPath(name).suffix in SCRIPTS:
            if _is_missing(commit, folder, name):
                raise SettingsError(f"{_path(folder, name)} is no file in {where}: correct MLPROJECT_ENTRY_POINT")
            return
        if not has_file:
            raise BuildUnusable(
                f"There is no MLproject in {'the folder ' + folder if folder else 'the root'} of {where}, which would "
                f"say what {name} is: add one, name its folder as in MLPROJECT_URI=…#folder, or set "
                "MLPROJECT_ENTRY_POINT to a script such as train.py"
            )
        known = ", ".join(sorted(project.entry_points)) or "none"
        raise SettingsError(
            f"MLproject in {where} has no entry point {name!r} (it has: {known}): correct MLPROJECT_ENTRY_POINT"
        )
    if missing := [parameter for parameter in point.required if parameter not in plan.parameters]:
        raise SettingsError(
            f"Entry point {name!r} in {where} wants values for {', '.join(missing)}: give them in "
            "MLPROJECT_PARAMETERS, or a default in MLproject"
        )


def _is_missing(commit: git.RemoteCommit, folder: str, file: str) -> bool:
    """Whether it is surely not there: nothing is said of ways that leave the commit or the usual."""
    path = PurePosixPath(folder, file)
    if path.is_absolute() or ".." in path.parts:
        return False
    entries = commit.folder("" if str(path.parent) == "." else str(path.parent))
    return entries is None or all(entry.name != path.name for entry in entries)


def _path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
