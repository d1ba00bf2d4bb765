"""MLflow runs over its REST API: found by tags, created once, finished, read.

Over REST (https://mlflow.org/docs/latest/rest-api.html), because `import mlflow` costs every run worker
2 s and 130 MB, for a handful of calls.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import IO, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import dagster as dg

from orchestrator import names
from orchestrator.errors import MlflowError, MlflowNotFound, MlflowRejected, MlflowTooLarge
from orchestrator.resources import retry
from orchestrator.resources.http import (
    LARGEST_ANSWER,
    HttpAnswer,
    HttpClient,
    HttpRequest,
    JsonObject,
    Method,
    Once,
)
from orchestrator.resources.mlflow.answers import (
    Experiment,
    FinalStatus,
    MetricPoint,
    ModelVersion,
    Run,
    RunStatus,
    experiments_page,
    key_values,
    points_page,
    runs_page,
    versions_page,
)
from orchestrator.resources.mlflow.errors import explain
from orchestrator.resources.mlflow.history import HistoryThinner
from orchestrator.resources.mlflow.model_files import ModelFiles
from orchestrator.resources.mlflow.registry import ModelRegistry
from orchestrator.resources.mlflow.search import RunSearch, conditions_on, search_body
from orchestrator.resources.mlflow.server import TrackingServer
from orchestrator.resources.retry import RetryPolicy
from orchestrator.settings.groups import MlflowSettings

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Limits that all of MLflow's stores keep (see "Log Batch" and "Data Structures" of its REST API).
TAG_BYTES = 5000
PARAM_BYTES = 6000
VALUES_PER_REQUEST = 100
EXPERIMENTS_PER_REQUEST = 100
POINTS_PER_PAGE = 10_000
MOST_PAGES = 1000
"""Of one metric's values."""

LARGEST_HISTORY = 16 * 2**20
"""A page has about 1 MB; a server that knows no pages answers with all of them."""

_WITHOUT_WORKSPACES = "FEATURE_DISABLED"
_ARTIFACTS = "api/2.0/mlflow-artifacts/artifacts/"


class Mlflow:
    """A client of one MLflow tracking server.

    An outage (no connection, a timeout, 408, 429, 5xx, a proxy's page) is ridden out as its policy says; nothing
    else is tried again. Each method raises, besides what it names, MlflowUnavailable after that time,
    MlflowRefused for 401, 403 and a login page, and MlflowError for a server that is not MLflow.

    Args:
        settings: the server and the login.
        policy: how long one call rides out an outage.

    Raises:
        SettingsError: see `TrackingServer.of`; or a certificate cannot be used.
    """

    def __init__(self, settings: MlflowSettings, *, policy: RetryPolicy = retry.MLFLOW) -> None:
        server = TrackingServer.of(settings)
        explained = functools.partial(explain, uri=server.http.address.uri, permission=server.permission)
        self._http = HttpClient(server.http, policy=policy, explain=explained)
        self._workspace = server.workspace
        self._pages = server.pages

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def uri(self) -> str:
        """The server's address without any login in it."""
        return self._http.uri

    @property
    def policy(self) -> RetryPolicy:
        """How long one call rides out an outage."""
        return self._http.policy

    def with_policy(self, policy: RetryPolicy) -> Self:
        """A client of the same session that is more or less patient."""
        client = copy.copy(self)
        client._http = self._http.with_policy(policy)
        return client

    def experiment(self, experiment_id: str) -> Experiment:
        """Read an experiment.

        Raises:
            MlflowNotFound: it does not exist or was deleted; tells the ID when a name was given.
        """
        request = _request("GET", "experiments/get", {"experiment_id": experiment_id})
        try:
            experiment = self._http.ask(replace(request, accepts=_is_without_workspaces), self._read_experiment)
        except (MlflowNotFound, MlflowRejected) as error:
            named = self._experiment_named(experiment_id)
            if named is not None:
                raise MlflowNotFound(
                    f"{experiment_id!r} is the name of an experiment on {self.uri}, not its ID: "
                    f"set MLFLOW_EXPERIMENT_ID={named.id}"
                ) from error
            if self._workspace:
                raise MlflowNotFound(
                    f"no experiment with ID {experiment_id} in workspace {self._workspace} on {self.uri}: set "
                    f"MLFLOW_EXPERIMENT_ID or MLFLOW_WORKSPACE, or create it ({error})"
                ) from error
            raise MlflowNotFound(
                f"no experiment with ID {experiment_id} on {self.uri}: set MLFLOW_EXPERIMENT_ID or create it"
            ) from error
        if not experiment.active:
            raise MlflowNotFound(
                f"the experiment with ID {experiment_id} ({experiment.name!r}) on {self.uri} is deleted: "
                "set MLFLOW_EXPERIMENT_ID to another or restore it"
            )
        return experiment

    def find_run(
        self, experiment_id: str, *, tags: Mapping[str, str], statuses: Collection[RunStatus] = ()
    ) -> Run | None:
        """The newest run with these tags that nobody deleted; arguments as in `find_runs`.

        Raises:
            MlflowTooLarge: it was not found, and not all could be looked at.
        """
        search = self._search(experiment_id, tags, statuses)
        run = next(search.runs(), None)
        if run is None and search.gap:
            raise MlflowTooLarge(search.gap)
        return run

    def find_runs(
        self, experiment_id: str, *, tags: Mapping[str, str], statuses: Collection[RunStatus] = ()
    ) -> Iterator[Run]:
        """All runs with these tags that nobody deleted, newest first.

        Fat runs are read in smaller pages, and one that cannot be read is left out with a warning. What cannot be
        looked at within the policy's `total_seconds` is left out, too: a warning says so.

        Args:
            experiment_id: where to look.
            tags: what they carry, with exactly these values.
            statuses: what they may be; default: anything.
        """
        search = self._search(experiment_id, tags, statuses)
        yield from search.runs()
        if search.gap:
            _log.warning(f"Not all MLflow runs were looked at: {search.gap}")

    def runs_since(self, moment: datetime, *, tags: Mapping[str, str]) -> list[Run]:
        """All runs with these tags that began since then, of all experiments that we may see; deleted ones too.

        Raises:
            MlflowTooLarge: not all could be looked at.
        """
        experiments, token = list[str](), ""
        while True:
            body = {"max_results": 1000, "view_type": "ALL", "page_token": token}
            page, following = self._post("experiments/search", body, experiments_page)
            experiments += page
            if not following or following == token:
                break
            token = following
        since = [f"attributes.start_time >= {round(moment.timestamp() * 1000)}"]
        found: list[Run] = []
        for first in range(0, len(experiments), EXPERIMENTS_PER_REQUEST):
            search = self._search(
                experiments[first : first + EXPERIMENTS_PER_REQUEST], tags, (), since, deleted_too=True
            )
            found += search.runs()
            if search.gap:
                raise MlflowTooLarge(search.gap)
        return found

    def _search(
        self,
        experiment_id: str | Sequence[str],
        tags: Mapping[str, str],
        statuses: Collection[RunStatus],
        conditions: Sequence[str] = (),
        *,
        deleted_too: bool = False,
    ) -> RunSearch:
        tags = {key: _cut(value, TAG_BYTES) for key, value in tags.items()}
        conditions = [*conditions_on(tags), *conditions]
        if len(statuses) == 1:
            conditions += [f"attributes.status = '{status}'" for status in statuses]
        return RunSearch(
            experiment_id,
            conditions,
            ask=lambda body, largest_bytes: self._http.ask(
                _request("POST", "runs/search", body, largest_bytes=largest_bytes), runs_page
            ),
            wanted=lambda run: run.has(tags) and (not statuses or run.status in statuses),
            longest_seconds=max(self.policy.total_seconds, self.policy.answer_seconds),
            deleted_too=deleted_too,
        )

    def create_run(self, experiment_id: str, *, name: str, tags: Mapping[str, str]) -> Run:
        """Create a run that is RUNNING, once, also when the first answer is lost.

        Before it is tried again, a run with these tags and this very millisecond of start is looked for.
        (A server that commits only after we looked leaves a second one, RUNNING, which carries our tags.)

        Raises:
            MlflowRejected: the experiment is deleted, or a tag is not acceptable.
            MlflowNotFound: there is no such experiment.
        """
        start_time = _now()
        tags = {key: _cut(value, TAG_BYTES) for key, value in tags.items()}
        new = {"experiment_id": experiment_id, "run_name": name, "start_time": start_time, "tags": key_values(tags)}
        search = search_body(experiment_id, [*conditions_on(tags), f"attributes.start_time = {start_time}"])
        tried = False

        def attempt(once: Once) -> Run:
            nonlocal tried
            if tried:
                runs, _ = once(_request("POST", "runs/search", search), runs_page)
                if run := next((run for run in runs if run.has(tags)), None):
                    return run
            tried = True
            return once(_request("POST", "runs/create", new), Run.from_json)

        return self._http.repeat(attempt)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags on a run; values longer than 5000 bytes are cut.

        Raises:
            MlflowNotFound: there is no such run.
            MlflowRejected: the run was deleted.
        """
        self._log_batch(run_id, "tags", {key: _cut(value, TAG_BYTES) for key, value in tags.items()})

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters of a run; values longer than 6000 bytes are cut.

        Raises:
            MlflowNotFound: there is no such run.
            MlflowRejected: the run was deleted, or has one of them with another value.
        """
        self._log_batch(run_id, "params", {key: _cut(value, PARAM_BYTES) for key, value in params.items()})

    def finish(self, run_id: str, status: FinalStatus, *, reason: str = "") -> Run:
        """End a run now, and return it as it then is.

        Args:
            run_id: the run.
            status: how it ended.
            reason: one sentence for people, kept in the tag `orchestrator.reason`.

        Raises:
            MlflowNotFound: there is no such run.
            MlflowRejected: the run was deleted.
        """
        if reason:
            self.set_tags(run_id, {names.MlflowTag.REASON: reason, names.MlflowTag.ENDED_AS: status})
        self._post("runs/update", {"run_id": run_id, "status": status, "end_time": _now()}, dict)
        return self.run(run_id)

    def run(self, run_id: str, *, deleted_too: bool = False) -> Run:
        """Read a run.

        Raises:
            MlflowNotFound: there is no such run, or it was deleted.
        """
        try:
            run = self._get("runs/get", {"run_id": run_id}, Run.from_json)
        except MlflowNotFound as error:
            sentence = f"no run with ID {run_id} on {self.uri}: it is on another server, or was removed for good"
            raise MlflowNotFound(sentence) from error
        if not run.active and not deleted_too:
            raise MlflowNotFound(f"the run with ID {run_id} on {self.uri} is deleted: restore it in MLflow")
        return run

    def metric_history(
        self, run_id: str, key: str, *, limit: int = 1_000_000, until: float = math.inf
    ) -> list[MetricPoint]:
        """The values of a metric in order of step and time; of many, those that a curve needs (see `HistoryThinner`).

        They are thinned out page by page, so memory holds one page. What is left out is said in a warning: whoever
        logs to the server decides how many values there are, and how large a page is.

        Args:
            run_id: the run.
            key: the metric.
            limit: no more pages are read once this number of points has come, or `MOST_PAGES`.
            until: no further page is asked for after this moment of the monotonic clock.

        Raises:
            MlflowNotFound: there is no such run.
        """
        query: dict[str, object] = {"run_id": run_id, "metric_key": key, "max_results": POINTS_PER_PAGE}
        thinner = HistoryThinner()
        tokens, count = {""}, 0

        def read(answer: JsonObject) -> tuple[int, str]:
            page, page_token = points_page(answer)
            thinner.add(page)
            return len(page), page_token

        while count < limit and len(tokens) <= MOST_PAGES and time.monotonic() < until:
            try:
                found, page_token = self._http.ask(
                    _request("GET", "metrics/get-history", query, largest_bytes=LARGEST_HISTORY), read
                )
            except MlflowTooLarge as error:  # a server that knows no pages
                _log.warning(f"Left out the history of metric {key:.100} of MLflow run {run_id}: {error}")
                return thinner.points()
            if page_token in tokens or not found:  # the last page, or a server whose pages never end
                return thinner.points()
            count += found
            tokens.add(page_token)
            query["page_token"] = page_token
        _log.warning(f"Left out the end of the history of metric {key:.100} of MLflow run {run_id}: it is too long")
        return thinner.points()

    def log_artifact(self, run_id: str, path: str, file: IO[bytes]) -> None:
        """Store a file among a run's artifacts, through the server; it is read piece by piece.

        Args:
            run_id: the run.
            path: what it is called there, with slashes between folders.
            file: its content.

        Raises:
            MlflowNotFound: there is no such run.
            MlflowError: the server does not take artifacts: its clients bring them to a store of their own.
        """
        place = self._get("runs/get", {"run_id": run_id}, lambda answer: str(answer["run"]["info"]["artifact_uri"]))
        folder = self._proxied(place)
        if folder is None:
            raise MlflowError(
                f"artifacts of MLflow run {run_id} are not kept by MLflow at {self.uri} itself, but in "
                f"{place.partition(':')[0]}, which only the training writes to; start the server with --serve-artifacts"
            )
        request = HttpRequest(method="PUT", path=f"{_ARTIFACTS}{quote(f'{folder}/{path}')}", body=file)
        self.with_policy(retry.MLFLOW_ARTIFACT)._http.ask(request, dict)

    def _proxied(self, place: str) -> str | None:
        """The folder at which the server itself keeps a run's artifacts; None: another store does.

        https://mlflow.org/docs/latest/self-hosting/architecture/artifact-store/
        """
        if place.startswith(f"{self.uri}/{_ARTIFACTS}"):
            return place.removeprefix(f"{self.uri}/{_ARTIFACTS}").strip("/")
        parts = urlsplit(place)
        if parts.scheme == "mlflow-artifacts" and parts.netloc in ("", urlsplit(self.uri).netloc):
            return parts.path.strip("/")
        return None

    def model_versions(self, run_id: str) -> list[ModelVersion]:
        """The registered versions of models that were logged to a run, the first hundred of them.

        A server without a model registry answers as if it were away: ask with little patience.
        """
        query = {"filter": f"run_id = '{run_id}'", "max_results": 100}
        return self._get("model-versions/search", query, versions_page)

    @property
    def registry(self) -> ModelRegistry:
        """The server's model registry, asked with the same patience."""
        return ModelRegistry(self._http, page=self._page)

    @property
    def model_files(self) -> ModelFiles:
        """The files of the models that the server keeps."""
        return ModelFiles(self._http, self.registry, read_run=self.run)

    def run_url(self, run: Run) -> str | None:
        """The page of a run in MLflow's user interface, as people reach it; None when none is known."""
        return self._page(f"experiments/{quote(run.experiment_id)}/runs/{quote(run.id)}")

    def _page(self, path: str) -> str | None:
        if self._pages is None:
            return None
        page = f"{self._pages}/#/{path}"
        return f"{page}?workspace={self._workspace}" if self._workspace else page

    def _read_experiment(self, answer: JsonObject) -> Experiment:
        if answer.get("error_code") == _WITHOUT_WORKSPACES:
            raise MlflowError(
                f"MLflow at {self.uri} has no workspaces: take MLFLOW_WORKSPACE out, or start that server with "
                "--enable-workspaces"
            )
        return Experiment.from_json(answer)

    def _experiment_named(self, name: str) -> Experiment | None:
        query = {"experiment_name": name}
        try:
            experiment = self._get("experiments/get-by-name", query, Experiment.from_json)
        except (MlflowNotFound, MlflowRejected):
            return None
        return experiment if experiment.active else None

    def _log_batch(self, run_id: str, kind: Literal["tags", "params"], values: Mapping[str, str]) -> None:
        pairs = key_values(values)
        for first in range(0, len(pairs), VALUES_PER_REQUEST):
            batch = pairs[first : first + VALUES_PER_REQUEST]
            self._post("runs/log-batch", {"run_id": run_id, kind: batch}, dict)

    def _get(self, endpoint: str, query: Mapping[str, object], read: Callable[[JsonObject], T]) -> T:
        return self._http.ask(_request("GET", endpoint, query), read)

    def _post(self, endpoint: str, fields: Mapping[str, object], read: Callable[[JsonObject], T]) -> T:
        return self._http.ask(_request("POST", endpoint, fields), read)


class MlflowResource(dg.ConfigurableResource[Mlflow]):
    """MLflow, for Dagster: connects when asked, with a pipeline's settings."""

    def connect(self, settings: MlflowSettings) -> Mlflow:
        """A client for these settings; close it, or use it as a context manager.

        Raises:
            SettingsError: the address or the certificate is wrong.
        """
        return Mlflow(settings)


def _request(
    method: Method, endpoint: str, fields: Mapping[str, object], *, largest_bytes: int = LARGEST_ANSWER
) -> HttpRequest:
    """A request that may safely be sent twice.

    Args:
        method: GET sends the fields as query, POST as JSON.
        endpoint: below `/api/2.0/mlflow/`, see https://mlflow.org/docs/latest/rest-api.html.
        fields: of the request.
        largest_bytes: of the answer.
    """
    path = f"api/2.0/mlflow/{endpoint}"
    if method == "GET":
        query = {key: str(value) for key, value in fields.items()}
        return HttpRequest(method=method, path=path, query=query, largest_bytes=largest_bytes)
    return HttpRequest(method=method, path=path, json=fields, largest_bytes=largest_bytes)


def _is_without_workspaces(answer: HttpAnswer) -> bool:
    """MLflow says so with 500, as if another try might help."""
    return (answer.json_object() or {}).get("error_code") == _WITHOUT_WORKSPACES


def _cut(value: str, size: int) -> str:
    return value.encode()[:size].decode(errors="ignore")


def _now() -> int:
    return time.time_ns() // 1_000_000
