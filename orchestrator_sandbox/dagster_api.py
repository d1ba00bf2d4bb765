"""Dagster as its users meet it: a small client of the webserver's GraphQL.

The demo does not import dagster itself, which costs seconds.
Source: https://docs.dagster.io/api/graphql and the schema under /graphql of any webserver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import requests

from orchestrator.errors import DagsterDown
from orchestrator.names import DagsterTag
from orchestrator_sandbox.dagster_runs import RUN_FIELDS, RunSummary, run_of

LOCATION = "orchestrator"
REPOSITORY = "__repository__"
ASSET_PAGE_JOB = "__ASSET_JOB"
REQUEST_SECONDS = 30

_ERROR = "... on Error { message }"


@dataclass(frozen=True)
class Materialisation:
    """One record of an asset; the metadata by label, whatever its type, as text."""

    run_id: str
    partition: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class CapturedOutput:
    """A piece of a run's captured output, and where the next one begins."""

    text: str
    cursor: str | None


class DagsterApi:
    """Client of one webserver.

    Args:
        url: its address, such as http://127.0.0.1:3000.
        token: what its door asks for; empty: it has none.
    """

    def __init__(self, url: str, *, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._session.trust_env = False  # a proxy has nothing to do with loopback

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._session.close()

    def location_error(self) -> str | None:
        """Why the code location did not load; None when it did.

        Raises:
            DagsterDown: no answer, or a refusal; as with every method here.
        """
        entries = self._ask(
            """{ workspaceOrError { __typename ... on Workspace { locationEntries {
                   locationOrLoadError { __typename ... on PythonError { message causes { message } } } } } } }"""
        )["locationEntries"]
        for entry in entries:
            loaded = entry["locationOrLoadError"]
            if loaded is None:
                return "it is still loading"
            if loaded["__typename"] == "PythonError":
                return _innermost(loaded)
        return None if entries else "there is none"

    def runs(self, *, partition: str | None = None, statuses: Sequence[str] = (), limit: int = 20) -> list[RunSummary]:
        """The newest runs first.

        Args:
            partition: only of this partition.
            statuses: only those in one of these; default: in any.
            limit: how many at most.
        """
        tags = [{"key": DagsterTag.PARTITION, "value": partition}] if partition is not None else []
        only = {"statuses": list(statuses)} if statuses else {}
        answer = self._ask(
            "query($filter: RunsFilter, $limit: Int) { runsOrError(filter: $filter, limit: $limit) "
            f"{{ __typename ... on Runs {{ results {{ {RUN_FIELDS} }} }} {_ERROR} }} }}",
            {"filter": {"tags": tags, **only}, "limit": limit},
        )
        return [run_of(run) for run in answer["results"]]

    def run(self, run_id: str) -> RunSummary:
        """One run."""
        return run_of(
            self._ask(
                f"query($id: ID!) {{ runOrError(runId: $id) {{ __typename ... on Run {{ {RUN_FIELDS} }} {_ERROR} }} }}",
                {"id": run_id},
            )
        )

    def launch(
        self,
        *,
        asset: Sequence[str],
        partition: str,
        job: str = ASSET_PAGE_JOB,
        config: Mapping[str, object] | None = None,
    ) -> str:
        """Launch a run as the UI does, and return its ID.

        Args:
            asset: the asset's key.
            partition: the partition to materialise.
            job: the job; default: what "Materialize" on the asset page runs.
            config: what the launchpad says of the asset.
        """
        parameters = {
            "selector": {
                "jobName": job,
                "repositoryName": REPOSITORY,
                "repositoryLocationName": LOCATION,
                "assetSelection": [{"path": list(asset)}],
            },
            "executionMetadata": {"tags": [{"key": DagsterTag.PARTITION, "value": partition}]},
            "runConfigData": {"ops": {"__".join(asset): {"config": dict(config)}}} if config else {},
        }
        answer = self._ask(
            "mutation($parameters: ExecutionParams!) { launchRun(executionParams: $parameters) "
            f"{{ __typename ... on LaunchRunSuccess {{ run {{ runId }} }} {_ERROR} }} }}",
            {"parameters": parameters},
        )
        return str(answer["run"]["runId"])

    def backfill(self, *, asset: Sequence[str], partitions: Sequence[str]) -> str:
        """Launch a backfill as the asset page does, and return its ID."""
        answer = self._ask(
            "mutation($parameters: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $parameters) "
            f"{{ __typename ... on LaunchBackfillSuccess {{ backfillId }} {_ERROR} }} }}",
            {"parameters": {"assetSelection": [{"path": list(asset)}], "partitionNames": list(partitions)}},
        )
        return str(answer["backfillId"])

    def cancel(self, run_id: str) -> None:
        """Cancel a run as the UI's "Terminate" does."""
        self._ask(
            "mutation($id: String!) { terminateRun(runId: $id) "
            f"{{ __typename ... on TerminateRunFailure {{ message }} {_ERROR} }} }}",
            {"id": run_id},
        )

    def partitions(self, asset: Sequence[str]) -> list[str]:
        """The partition keys of an asset."""
        answer = self._ask(
            """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
                 __typename ... on AssetNode { partitionKeys } ... on AssetNotFoundError { message } } }""",
            {"key": {"path": list(asset)}},
        )
        return [str(key) for key in answer["partitionKeys"]]

    def materialisations(self, asset: Sequence[str], *, partition: str) -> list[Materialisation]:
        """What was recorded for one partition of an asset, newest first."""
        answer = self._ask(
            """query($key: AssetKeyInput!, $partitions: [String!]) { assetOrError(assetKey: $key) { __typename
                 ... on Asset { assetMaterializations(partitions: $partitions) { runId partition metadataEntries {
                   label ... on TextMetadataEntry { text } ... on UrlMetadataEntry { url }
                   ... on FloatMetadataEntry { floatValue } ... on IntMetadataEntry { intRepr } } } }
                 ... on AssetNotFoundError { message } } }""",
            {"key": {"path": list(asset)}, "partitions": [partition]},
        )
        return [
            Materialisation(
                run_id=record["runId"],
                partition=record["partition"],
                metadata={entry["label"]: _text(entry) for entry in record["metadataEntries"]},
            )
            for record in answer["assetMaterializations"]
        ]

    def failed_tick(self, sensor: str) -> str | None:
        """Why the sensor's newest tick failed; None when it did not."""
        answer = self._ask(
            """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { __typename
                 ... on Sensor { sensorState { ticks(limit: 1) { error { message causes { message } } } } } } }""",
            {"selector": {"sensorName": sensor, "repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}},
        )
        ticks = answer["sensorState"]["ticks"]
        return _innermost(ticks[0]["error"]) if ticks and ticks[0]["error"] else None

    def failure(self, run_id: str) -> str | None:
        """Why a run failed, in the words of the step that did; None when nothing says so."""
        answer = self._ask(
            """query($id: ID!) { logsForRun(runId: $id) { __typename ... on EventConnection { events { __typename
                 ... on ExecutionStepFailureEvent { error { message } failureMetadata { description } }
                 ... on RunFailureEvent { message error { message } } } } ... on Error { message } } }""",
            {"id": run_id},
        )
        for event in answer["events"]:
            described = (event.get("failureMetadata") or {}).get("description")
            message = described or (event.get("error") or {}).get("message") or event.get("message")
            if message:
                return str(message)
        return None

    def output_key(self, run_id: str) -> list[str] | None:
        """The key of the captured output of a run's steps; None before there is any."""
        answer = self._ask(
            """query($id: ID!) { logsForRun(runId: $id) { __typename ... on EventConnection { events {
                 __typename ... on LogsCapturedEvent { fileKey } } } ... on Error { message } } }""",
            {"id": run_id},
        )
        keys = [event["fileKey"] for event in answer["events"] if "fileKey" in event]
        return [run_id, "compute_logs", str(keys[0])] if keys else None

    def output(self, key: Sequence[str], *, cursor: str | None) -> CapturedOutput:
        """What the training has printed since `cursor`."""
        answer = self._ask(
            """query($key: [String!]!, $cursor: String) {
                 capturedLogs(logKey: $key, cursor: $cursor) { stdout cursor } }""",
            {"key": list(key), "cursor": cursor},
        )
        return CapturedOutput(text=answer["stdout"] or "", cursor=answer["cursor"])

    def _ask(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The one field that the query asks for.

        Raises:
            DagsterDown: no answer, or an answer of another kind than the query is about.
        """
        try:
            response = self._session.post(
                f"{self.url}/graphql",
                json={"query": query, "variables": dict(variables or {})},
                timeout=REQUEST_SECONDS,
            )
            answer: dict[str, Any] = response.json()
        except requests.RequestException as error:
            raise DagsterDown(f"Dagster on {self.url} does not answer ({type(error).__name__})") from error
        if answer.get("errors"):
            raise DagsterDown(f"Dagster on {self.url} refuses a query: {answer['errors'][0]['message']}")
        (field,) = answer["data"].values()
        if "message" in field or str(field.get("__typename", "")).endswith(("Error", "Failure")):
            raise DagsterDown(f"Dagster answers {field.get('__typename')}: {field.get('message', '')}")
        fields: dict[str, Any] = field
        return fields


def _innermost(error: Mapping[str, Any]) -> str:
    """The message of the error that Dagster has wrapped into its own."""
    return str([error, *error["causes"]][-1]["message"]).strip()


def _text(entry: Mapping[str, Any]) -> str:
    values = (entry.get(name) for name in ("text", "url", "floatValue", "intRepr"))
    return next((str(value) for value in values if value is not None), "")
