"""A model's files, fetched from MLflow over REST as they are: nothing is loaded, nothing is unpickled."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import MlflowError, MlflowNotFound
from orchestrator.resources import retry
from orchestrator.resources.http import HttpClient, HttpRequest, IncompleteError, JsonObject
from orchestrator.resources.mlflow.answers import ModelVersion, Run
from orchestrator.resources.mlflow.registry import (
    LoggedModel,
    ModelEntry,
    ModelRegistry,
    entries,
    file_request,
    folder_request,
)

_log = logging.getLogger(__name__)

DESCRIPTION = "MLmodel"
"""The file that makes a folder a model."""

MOST_FILES = 10_000
MOST_FOLDERS = 2_000

_VERSION = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]{1,9})")
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
_MODEL = re.compile(r"models:/(?P<id>m-[A-Za-z0-9]{1,100})")
_RUN = re.compile(r"runs:/(?P<id>[A-Za-z0-9]{1,100})/(?P<path>.+)")
_FORMS = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-… or runs:/ID/PATH"


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model that MLflow keeps.

    Attributes:
        model: where its files are.
        version: what it is in the registry; None: it was not asked for there.
        run: what it was logged to; None: it does not say.
    """

    model: LoggedModel
    version: ModelVersion | None
    run: Run | None


class ModelFiles:
    """Finds models and fetches their files; each method raises as those of `Mlflow`.

    Args:
        http: asks the server.
        registry: of that server.
        read_run: reads a run of that server.
    """

    def __init__(self, http: HttpClient, registry: ModelRegistry, *, read_run: Callable[[str], Run]) -> None:
        self._http = http
        self._registry = registry
        self._read_run = read_run

    def find(self, uri: str) -> StoredModel:
        """The model at an address.

        Args:
            uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/m-…` or `runs:/ID/PATH`.

        Raises:
            MlflowNotFound: there is none.
            MlflowError: it is no such address.
        """
        if found := _VERSION.fullmatch(uri):
            return self.of_version(found["name"], found["version"])
        if found := _ALIAS.fullmatch(uri):
            return self.of_version(found["name"], self.version_at(found["name"], found["alias"]))
        if found := _MODEL.fullmatch(uri):
            model = self._logged(found["id"])
            return StoredModel(model=model, version=None, run=self._run_of(model.run_id))
        if found := _RUN.fullmatch(uri):
            run = self._read_run(found["id"])
            return StoredModel(model=self._model_of(run, name=found["path"]), version=None, run=run)
        raise MlflowError(f"{uri!r} is not the address of a model: write {_FORMS}")

    def version_at(self, name: str, alias: str) -> str:
        """The number of the version that an alias points to.

        Raises:
            MlflowNotFound: there is no such model, or no such alias.
        """
        model = self._registry.registered(name)
        version = model.aliases.get(alias) if model else None
        if version is None:
            raise MlflowNotFound(f"MLflow has no model {name!r} with an alias {alias!r}")
        return version

    def of_version(self, name: str, version: str) -> StoredModel:
        """The model behind a version."""

        def read(answer: JsonObject) -> tuple[ModelVersion, str, str]:
            found = answer["model_version"]
            return ModelVersion.from_json(found), str(found.get("model_id") or ""), str(found.get("source") or "")

        query = {"name": name, "version": version}
        found, model_id, source = self._http.ask(
            HttpRequest(path="api/2.0/mlflow/model-versions/get", query=query), read
        )
        run = self._run_of(found.run_id)
        if not model_id and (named := _MODEL.fullmatch(source)):
            model_id = named["id"]
        if model_id:
            return StoredModel(model=self._logged(model_id), version=found, run=run)
        if run is None or not source.startswith(f"{run.artifact_uri}/"):
            raise MlflowNotFound(
                f"version {version} of {name} is made from {source[:300]!r}, which is neither a model that MLflow has "
                "logged nor an artifact of its run"
            )
        path = source.removeprefix(f"{run.artifact_uri}/")
        return StoredModel(model=LoggedModel(run_id=run.id, id="", name=path, source=source), version=found, run=run)

    def fetch(self, model: LoggedModel, folder: Path) -> None:
        """Fetch all files of a model into a folder.

        Args:
            model: whose.
            folder: empty.

        Raises:
            MlflowNotFound: it has no file `MLmodel`, so that it is no model.
            MlflowError: it has too many files, or a file whose name leads elsewhere.
        """
        patient = self._http.with_policy(retry.MLFLOW_MODEL)
        found = list(self._files(model))
        if not any(entry.path == DESCRIPTION for entry in found):
            raise MlflowNotFound(f"there is no file {DESCRIPTION} at {model.source}: no model is there")
        for entry in found:
            place = folder / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            patient.download(file_request(model, entry.path), functools.partial(_store, entry, place))
        _log.info(f"Fetched {len(found)} files of {model.source}")

    def _files(self, model: LoggedModel) -> Iterator[ModelEntry]:
        folders, count = [""], 0
        for position in range(MOST_FOLDERS):
            if position >= len(folders):
                return
            for entry in self._http.ask(folder_request(model, folders[position]), lambda a: entries(model, a)):
                _require_inside(entry.path, folders[position], model)
                if entry.is_folder:
                    folders.append(entry.path)
                    continue
                count += 1
                if count > MOST_FILES:
                    raise MlflowError(f"{model.source} has more than {MOST_FILES} files")
                yield entry
        raise MlflowError(f"{model.source} has more than {MOST_FOLDERS} folders")

    def _logged(self, model_id: str) -> LoggedModel:
        def read(answer: JsonObject) -> LoggedModel:
            info = answer["model"]["info"]
            return LoggedModel(
                run_id=str(info.get("source_run_id") or ""),
                id=model_id,
                name=str(info["name"]),
                source=f"models:/{model_id}",
            )

        return self._http.ask(HttpRequest(path=f"api/2.0/mlflow/logged-models/{model_id}"), read)

    def _model_of(self, run: Run, *, name: str) -> LoggedModel:
        """MLflow 3 keeps a run's models beside it, each with a name; MLflow 2 among its artifacts."""
        for model_id in reversed(run.models):
            model = self._logged(model_id)
            if model.name == name:
                return model
        return LoggedModel(run_id=run.id, id="", name=name.strip("/"), source=f"runs:/{run.id}/{name}")

    def _run_of(self, run_id: str) -> Run | None:
        try:
            return self._read_run(run_id) if run_id else None
        except MlflowNotFound:
            return None


def _require_inside(path: str, folder: str, model: LoggedModel) -> None:
    parts = path.split("/")
    inside = path.startswith(f"{folder}/") if folder else True
    if not inside or any(part in ("", ".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise MlflowError(f"{model.source} has a file named {path[:200]!r}, which leads elsewhere")


def _store(entry: ModelEntry, place: Path, pieces: Iterator[bytes]) -> None:
    size = 0
    with place.open("wb") as file:
        for piece in pieces:
            size += len(piece)
            if entry.size is not None and size > entry.size:
                break
            file.write(piece)
    if entry.size is not None and size != entry.size:
        raise IncompleteError(f"{entry.path} has {entry.size} bytes, of which {size} came")
