"""MLflow's model registry over REST: the model of a run, and versions of registered models, each run's once.

https://mlflow.org/docs/latest/rest-api.html#create-modelversion. Aliases are not compare-and-set: who sets one reads
everything again afterwards (`orchestrator.pipeline.models.champion`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import quote

import tenacity

from orchestrator.errors import MlflowError, MlflowNotFound, MlflowRejected, MlflowUnavailable
from orchestrator.names import MlflowTag
from orchestrator.resources.http import HttpClient, HttpRequest, JsonObject, Method, Once
from orchestrator.resources.mlflow.answers import ModelVersion, RegisteredModel, Run, key_values, versions_page

T = TypeVar("T")
_log = logging.getLogger(__name__)

VERSIONS_PER_PAGE = 500
MOST_VERSIONS = 5000
"""Of one model; whoever may register decides how many there are."""

TAG_BYTES = 5000
LARGEST_FILE = 2**20
"""Of a model's own files that are read here: its description, never the model."""

MOST_FOLDERS = 1000

_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_EXISTS = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True, kw_only=True)
class LoggedModel:
    """A model that was logged to a run.

    Attributes:
        run_id: the run.
        id: `m-…` in MLflow 3; empty in MLflow 2, whose models are artifacts of their run.
        name: of the model, or its path among the run's artifacts.
        source: what a version of it is made from.
        others: how many others were logged to the same run.
    """

    run_id: str
    id: str
    name: str
    source: str
    others: int = 0


class ModelRegistry:
    """The registry of one tracking server; each method raises as those of `Mlflow`.

    Args:
        http: asks the server.
        page: the address of a page of MLflow's, from its path; None: nowhere that is known.
    """

    def __init__(self, http: HttpClient, *, page: Callable[[str], str | None]) -> None:
        self._http = http
        self._page = page

    # ---- the model of a run

    def model_of(self, run: Run) -> LoggedModel | None:
        """The model that was logged to a run, the last of several; None: there is none.

        MLflow 3 has models among the outputs of a run, MLflow 2 in a tag.

        Raises:
            MlflowNotFound: the run names a model that is not there.
        """
        if run.models:
            model_id = run.models[-1]
            if not _ID.fullmatch(model_id):
                raise MlflowNotFound(f"MLflow run {run.id} names a model {model_id[:100]!r}, which cannot be one")
            name = self._get(f"logged-models/{model_id}", {}, lambda answer: str(answer["model"]["info"]["name"]))
            others = len(run.models) - 1
            return LoggedModel(run_id=run.id, id=model_id, name=name, source=f"models:/{model_id}", others=others)
        paths = _paths(run.tags.get(MlflowTag.LOGGED_MODELS, ""))
        if not paths:
            return None
        source = f"{run.artifact_uri}/{paths[-1]}"
        return LoggedModel(run_id=run.id, id="", name=paths[-1], source=source, others=len(paths) - 1)

    def files_of(self, model: LoggedModel) -> list[str]:
        """The paths of a model's files, as far as `MOST_FOLDERS` of its folders show them."""
        files, folders = list[str](), [""]
        for position in range(MOST_FOLDERS):
            if position >= len(folders):
                return files
            for path, is_folder in self._folder(model, folders[position]):
                (folders if is_folder else files).append(path)
        _log.warning(f"Looked at no more than {MOST_FOLDERS} folders of model {model.source}")
        return files

    def _folder(self, model: LoggedModel, folder: str) -> list[tuple[str, bool]]:
        found = self._http.ask(folder_request(model, folder), lambda answer: entries(model, answer))
        return [(entry.path, entry.is_folder) for entry in found]

    def file_of(self, model: LoggedModel, path: str) -> bytes:
        """One small file of a model, as MLflow's own pages read it.

        Raises:
            MlflowTooLarge: it is larger than `LARGEST_FILE`.
        """
        request = replace(file_request(model, path), headers={"Accept": "*/*"}, largest_bytes=LARGEST_FILE)
        retrying = self._http.policy.retrying(retry=tenacity.retry_if_exception_type(MlflowUnavailable))
        return retrying(lambda: self._http.send_once(request)).body

    # ---- registered models

    def registered(self, name: str) -> RegisteredModel | None:
        """A registered model and its aliases; None: there is none of this name."""
        try:
            return self._get("registered-models/get", {"name": name}, RegisteredModel.from_json)
        except MlflowNotFound:
            return None

    def require_registered(self, name: str) -> RegisteredModel:
        """The registered model of this name, which is created if there is none."""
        if (model := self.registered(name)) is not None:
            return model
        try:
            self._post("registered-models/create", {"name": name}, dict)
        except MlflowRejected as error:
            if _EXISTS not in str(error) and self.registered(name) is None:
                raise
        return self.registered(name) or RegisteredModel(name=name)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a registered model, the oldest first; `MOST_VERSIONS` of them, the newest."""
        found: dict[int, ModelVersion] = {}
        token, tokens = "", {""}
        while True:
            query = {
                "filter": f"name = '{name}'",
                "max_results": VERSIONS_PER_PAGE,
                "order_by": "version_number DESC",
                "page_token": token,
            }
            page, token = self._get("model-versions/search", query, _versions_and_token)
            found |= {version.number: version for version in page if version.model == name}
            if token in tokens or not page:
                break
            if len(found) >= MOST_VERSIONS:
                _log.warning(f"Looked at the newest {MOST_VERSIONS} versions of model {name} only")
                break
            tokens.add(token)
        return [found[number] for number in sorted(found)]

    def version(self, name: str, number: str) -> ModelVersion:
        """One version of a registered model.

        Raises:
            MlflowNotFound: there is no such version.
        """
        return self._get("model-versions/get", {"name": name, "version": number}, _one_version)

    def register(self, name: str, model: LoggedModel, *, tags: Mapping[str, str]) -> ModelVersion:
        """The version of this run, which is created if there is none: MLflow itself would make one at each call.

        A version that the training has made itself counts. (Two callers at the same moment may make two: the older
        one counts.)
        """
        tags = {key: _cut(value) for key, value in tags.items()}
        new = {"name": name, "source": model.source, "run_id": model.run_id, "tags": key_values(tags)}
        if model.id:
            new["model_id"] = model.id
        query = {"filter": f"run_id = '{_checked(model.run_id)}'", "max_results": str(100)}

        def attempt(once: Once) -> ModelVersion:
            versions = once(_request("GET", "model-versions/search", query), versions_page)
            mine = [version for version in versions if version.model == name]
            if mine:
                return min(mine, key=lambda version: version.number)
            return once(_request("POST", "model-versions/create", new), _one_version)

        version = self._http.repeat(attempt)
        missing = {key: value for key, value in tags.items() if version.tags.get(key) != value}
        self.set_tags(version, missing)
        return replace(version, tags={**version.tags, **missing})

    def set_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version; values longer than 5000 bytes are cut."""
        for key, value in tags.items():
            fields = {"name": version.model, "version": version.version, "key": key, "value": _cut(value)}
            self._post("model-versions/set-tag", fields, dict)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Let an alias point to a version, wherever it points now."""
        fields = {"name": version.model, "version": version.version, "alias": alias}
        self._post("registered-models/alias", fields, dict)

    def delete_version(self, version: ModelVersion) -> None:
        """Delete a version; the run and its model stay."""
        try:
            fields = {"name": version.model, "version": version.version}
            self._http.ask(_request("DELETE", "model-versions/delete", fields), dict)
        except MlflowNotFound:
            return

    def url_of(self, version: ModelVersion) -> str | None:
        """The page of a version in MLflow's user interface; None when it is not known."""
        return self._page(f"models/{quote(version.model, safe='')}/versions/{quote(version.version)}")

    def _get(self, endpoint: str, query: Mapping[str, object], read: Callable[[JsonObject], T]) -> T:
        return self._http.ask(_request("GET", endpoint, query), read)

    def _post(self, endpoint: str, fields: Mapping[str, object], read: Callable[[JsonObject], T]) -> T:
        return self._http.ask(_request("POST", endpoint, fields), read)


def _versions_and_token(answer: JsonObject) -> tuple[list[ModelVersion], str]:
    """The versions in an answer of `model-versions/search`, and the token of the next page ("" on the last)."""
    token = answer.get("next_page_token")
    return versions_page(answer), token if isinstance(token, str) else ""


def _one_version(answer: JsonObject) -> ModelVersion:
    return ModelVersion.from_json(answer["model_version"])


def _request(method: Method, endpoint: str, fields: Mapping[str, object]) -> HttpRequest:
    path = f"api/2.0/mlflow/{endpoint}"
    if method == "GET":
        return HttpRequest(path=path, query={key: str(value) for key, value in fields.items() if value != ""})
    return HttpRequest(method=method, path=path, json=fields)


def _checked(run_id: str) -> str:
    """The run's ID, as it may stand in a search.

    Raises:
        MlflowError: it cannot be one.
    """
    if not _ID.fullmatch(run_id):
        raise MlflowError(f"{run_id[:100]!r} cannot be the ID of an MLflow run")
    return run_id


def _paths(history: str) -> list[str]:
    """Where MLflow 2 says that the models of a run are, among its artifacts; what cannot be read is no model."""
    try:
        entries = json.loads(history) if history else []
    except (ValueError, RecursionError):
        return []
    listed = entries if isinstance(entries, list) else []
    paths = [entry.get("artifact_path") for entry in listed if isinstance(entry, dict)]
    return [path for path in paths if isinstance(path, str) and _is_below(path)]


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A file or folder of a model.

    Attributes:
        path: below the model.
        size: in bytes; None: the server does not say.
    """

    path: str
    is_folder: bool
    size: int | None


def folder_request(model: LoggedModel, folder: str) -> HttpRequest:
    """The question for what is in a folder of a model; `entries` reads the answer."""
    if model.id:
        query = {"artifact_directory_path": folder}
        return _request("GET", f"logged-models/{model.id}/artifacts/directories", query)
    path = f"{model.name}/{folder}".rstrip("/")
    return _request("GET", "artifacts/list", {"run_id": model.run_id, "path": path})


def entries(model: LoggedModel, answer: JsonObject) -> list[ModelEntry]:
    """What is in a folder of a model, below the model."""
    prefix = "" if model.id else f"{model.name}/"
    found = [(str(entry.get("path", "")), entry) for entry in answer.get("files") or []]
    return [
        ModelEntry(path=path.removeprefix(prefix), is_folder=bool(entry.get("is_dir")), size=_size(entry))
        for path, entry in found
        if _is_below(path) and path.startswith(prefix)
    ]


def _size(entry: Mapping[str, object]) -> int | None:
    size = entry.get("file_size")
    return int(size) if isinstance(size, int | str) and str(size).isdecimal() else None


def file_request(model: LoggedModel, path: str) -> HttpRequest:
    """The request for a file of a model, as MLflow's own pages send it."""
    if model.id:
        place = f"ajax-api/2.0/mlflow/logged-models/{model.id}/artifacts/files"
        return HttpRequest(path=place, query={"artifact_file_path": path})
    return HttpRequest(path="get-artifact", query={"run_id": model.run_id, "path": f"{model.name}/{path}"})


def _is_below(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and len(path) <= 1000


def _cut(value: str) -> str:
    return value.encode()[:TAG_BYTES].decode(errors="ignore")
