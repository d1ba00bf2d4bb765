"""The GraphQL client, where Dagster is away or disagrees; test_stack.py uses all of it on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import flask
import pytest

from orchestrator.errors import DagsterDown
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.processes.child import free_port
from orchestrator_sandbox.web import WebServer


@contextmanager
def answering(answer: object) -> Iterator[DagsterApi]:
    app = flask.Flask(__name__)

    @app.post("/graphql")
    def graphql() -> flask.Response:
        return flask.Response(answer if isinstance(answer, str) else json.dumps(answer))

    server = WebServer(app)
    try:
        with DagsterApi(f"http://127.0.0.1:{server.port}/") as dagster:
            yield dagster
    finally:
        server.close()


def location(loaded: object) -> object:
    return {
        "data": {"workspaceOrError": {"__typename": "Workspace", "locationEntries": [{"locationOrLoadError": loaded}]}}
    }


def test_a_dagster_that_is_away_is_named() -> None:
    port = free_port()
    with DagsterApi(f"http://127.0.0.1:{port}") as dagster, pytest.raises(DagsterDown, match=f"127.0.0.1:{port} does"):
        dagster.runs()


def test_an_answer_that_is_no_json_is_no_answer() -> None:
    with answering("<html>") as dagster, pytest.raises(DagsterDown, match="does not answer"):
        dagster.runs()


def test_a_question_that_dagster_does_not_understand_is_told_in_its_words() -> None:
    answer = {"errors": [{"message": "Unknown argument"}]}
    with answering(answer) as dagster, pytest.raises(DagsterDown, match="refuses a query: Unknown argument"):
        dagster.cancel("no such run")


def test_a_refusal_is_told_in_dagsters_words() -> None:
    answer = {"data": {"terminateRun": {"__typename": "RunNotFoundError", "message": "there is no run 7"}}}
    with answering(answer) as dagster, pytest.raises(DagsterDown, match="RunNotFoundError: there is no run 7"):
        dagster.cancel("7")


@pytest.mark.parametrize(
    ("loaded", "error"),
    [
        ({"__typename": "RepositoryLocation"}, None),
        (None, "it is still loading"),
        ({"__typename": "PythonError", "message": "cannot load", "causes": []}, "cannot load"),
        (
            {"__typename": "PythonError", "message": "cannot load", "causes": [{"message": "no module named x\n"}]},
            "no module named x",
        ),
    ],
)
def test_a_code_location_that_did_not_load_says_its_innermost_cause(loaded: object, error: str | None) -> None:
    with answering(location(loaded)) as dagster:
        assert dagster.location_error() == error


def test_a_workspace_without_a_code_location_is_an_error() -> None:
    with answering({"data": {"workspaceOrError": {"__typename": "Workspace", "locationEntries": []}}}) as dagster:
        assert dagster.location_error() == "there is none"


def test_a_failed_step_speaks_before_the_failed_run() -> None:
    events = [
        {"__typename": "ExecutionStepFailureEvent", "failureMetadata": {"description": "the disk is full"}},
        {"__typename": "RunFailureEvent", "message": "1 step failed"},
    ]
    with answering({"data": {"logsForRun": {"__typename": "EventConnection", "events": events}}}) as dagster:
        assert dagster.failure("7") == "the disk is full"
    with answering({"data": {"logsForRun": {"__typename": "EventConnection", "events": []}}}) as dagster:
        assert dagster.failure("7") is None
        assert dagster.output_key("7") is None
