"""Reading what a server says that calls itself MLflow: any JSON gives values, or an error that the client explains."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowError, MlflowTooLarge
from orchestrator.resources.mlflow import Run
from orchestrator.resources.mlflow.answers import Experiment, points_page, runs_page
from orchestrator.resources.mlflow.search import RunSearch
from orchestrator_sandbox.proxy import FaultyProxy, ProxyFault
from orchestrator_tests.support.mlflow_client import client

FIELDS = [
    "run", "runs", "info", "data", "run_id", "run_name", "experiment", "experiment_id", "name", "status", "start_time",
    "lifecycle_stage", "params", "metrics", "tags", "key", "value", "step", "timestamp", "next_page_token",
]  # fmt: skip

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["RUNNING", "GONE", "12", "NaN", "1e999", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=15,
)
runs = st.fixed_dictionaries(
    {
        "info": st.fixed_dictionaries(
            {"run_id": anything, "experiment_id": anything, "status": st.just("RUNNING") | anything},
            optional={"start_time": anything, "run_name": anything},
        ),
    },
    optional={"data": st.fixed_dictionaries({}, optional={"tags": anything, "params": anything, "metrics": anything})},
)


def kept(run: Run) -> None:
    assert run.status in ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
    for texts in (run.params, run.tags):
        assert all(isinstance(text, str) for pair in texts.items() for text in pair)


@given(answer=st.dictionaries(st.sampled_from(FIELDS), anything) | st.fixed_dictionaries({"run": runs | anything}))
def test_any_json_is_a_run_or_none(answer: dict[str, Any]) -> None:
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        kept(Run.from_json(answer))
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        found, token = runs_page({"runs": [answer.get("run")], **answer})
        assert isinstance(token, str)
        for run in found:
            kept(run)
    for read in (Experiment.from_json, points_page):
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
            read(answer)


def test_any_json_from_a_server_is_explained() -> None:
    with FaultyProxy() as server, client(server.url) as mlflow:

        @settings(max_examples=50, deadline=None)
        @given(answer=st.fixed_dictionaries({"run": runs}) | st.fixed_dictionaries({"run": anything}))
        def ask(answer: dict[str, Any]) -> None:
            server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
            with contextlib.suppress(MlflowError):
                kept(mlflow.run("abc"))

        ask()


def test_a_tag_without_a_value_is_empty() -> None:
    info = {"run_id": "r", "experiment_id": 3, "status": "FINISHED"}
    run = Run.from_json({"run": {"info": info, "data": {"tags": [{"key": "a"}, {"key": "b", "value": "c"}]}}})
    assert (run.experiment_id, run.tags, run.start_time) == ("3", {"a": "", "b": "c"}, None)


def a_run(run_id: object = "r", **info: object) -> dict[str, Any]:
    tags = info.pop("tags", [{"key": "orchestrator.pipeline", "value": "churn"}])
    return {
        "info": {"run_id": run_id, "experiment_id": "1", "status": "RUNNING", "start_time": 1, **info},
        "data": {"tags": tags},
    }


@pytest.mark.parametrize("start_time", [9e18, 9 * 10**18, -1, -(10**30), "soon", "9e18", None, {}, [], True, 1e999, 0])
def test_a_time_that_cannot_be_is_not_known_and_hides_no_run(start_time: object) -> None:
    runs, _ = runs_page({"runs": [a_run("odd", start_time=start_time, end_time=start_time), a_run("good")]})
    assert [run.id for run in runs] == ["odd", "good"]
    assert all(run.start_time is None or run.start_time.year < 9999 for run in runs)


@pytest.mark.parametrize(
    "odd",
    [
        None,
        5,
        "run",
        [],
        {},
        {"info": None},
        {"data": {}},
        a_run(status="GONE"),
        a_run(status=None),
        a_run(tags=5),
        a_run(tags={"key": "value"}),
    ],
)
def test_a_run_that_cannot_be_read_costs_that_run(odd: object, caplog: pytest.LogCaptureFixture) -> None:
    runs, token = runs_page({"runs": [a_run("first"), odd, a_run("last")], "next_page_token": "next"})
    assert ([run.id for run in runs], token) == (["first", "last"], "next")
    (record,) = caplog.records
    assert record.getMessage().startswith("Left out a run of MLflow that cannot be read: ")


def test_a_tag_that_cannot_be_read_costs_that_tag() -> None:
    tags = [{"key": "a", "value": 5}, {"value": "no key"}, None, 7, {"key": "b", "value": None}, {"key": "c"}]
    (run,), _ = runs_page({"runs": [a_run(tags=tags)]})
    assert run.tags == {"a": "5", "b": "None", "c": ""}


def test_a_point_that_cannot_be_read_costs_that_point() -> None:
    points = [
        {"value": 1, "step": 1},
        {"value": "one"},
        None,
        {"step": 2},
        {"value": 2, "step": 1e999},
        {"value": "NaN"},
    ]
    found, _ = points_page({"metrics": points})
    assert [point.step for point in found] == [1, 0]


class Pages:
    """A server's `runs/search`, with runs of given sizes, whose answers must not be larger than asked for."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.asked = 0

    def ask(self, body: dict[str, Any], largest_bytes: int) -> tuple[list[Run], str]:
        self.asked += 1
        newest_first = "DESC" in body["order_by"][0]
        names = list(self.sizes) if newest_first else list(self.sizes)[::-1]
        start = int(body.get("page_token") or 0)
        stop = start + body["max_results"]
        if sum(self.sizes[name] for name in names[start:stop]) > largest_bytes:
            raise MlflowTooLarge("too large")
        token = str(stop) if stop < len(names) else ""
        return runs_page({"runs": [a_run(name) for name in names[start:stop]]})[0], token

    def search(self, *, longest_seconds: float = 60) -> RunSearch:
        return RunSearch("1", [], ask=self.ask, wanted=lambda run: True, longest_seconds=longest_seconds)


MB = 2**20


def test_fat_runs_are_read_in_smaller_pages() -> None:
    pages = Pages({f"r{number}": MB for number in range(300)})
    search = pages.search()
    assert [run.id for run in search.runs()] == list(pages.sizes)
    assert search.gap == ""
    assert pages.asked < 70


def test_a_run_too_large_to_be_read_hides_only_itself() -> None:
    pages = Pages({f"r{number}": 100 * MB if number == 20 else 1000 for number in range(50)})
    search = pages.search()
    assert {run.id for run in search.runs()} == set(pages.sizes) - {"r20"}
    assert "too large" in search.gap


def test_a_search_has_an_end_in_time() -> None:
    pages = Pages({f"r{number}": 1000 for number in range(1000)})
    search = pages.search(longest_seconds=0)
    assert len(list(search.runs())) == 200
    assert "for the time there is" in search.gap


@pytest.mark.parametrize("tokens", [["a", "b", "a"], ["same", "same"]])
def test_pages_that_never_end_are_left(tokens: list[str]) -> None:
    asked: list[object] = []

    def ask(body: dict[str, Any], largest_bytes: int) -> tuple[list[Run], str]:
        asked.append(body.get("page_token"))
        return [], tokens[(len(asked) - 1) % len(tokens)]

    search = RunSearch("1", [], ask=ask, wanted=lambda run: True, longest_seconds=60)
    assert list(search.runs()) == []
    assert len(asked) <= 3


@pytest.mark.parametrize("metrics", [[], [{"value": 1, "step": 1}]])
def test_a_history_that_never_ends_is_left(metrics: list[object]) -> None:
    answer = {"metrics": metrics, "next_page_token": "again"}
    with FaultyProxy() as server, client(server.url) as mlflow:
        server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
        assert len(mlflow.metric_history("r", "loss")) == 2 * len(metrics)


def test_runs_are_found_beside_ones_that_cannot_be_read() -> None:
    answer = {"runs": [a_run("odd", start_time=9 * 10**18), a_run("none", status=7), a_run("good")]}
    with FaultyProxy() as server, client(server.url) as mlflow:
        server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
        found = mlflow.find_runs("1", tags={"orchestrator.pipeline": "churn"}, statuses=["RUNNING"])
        assert [run.id for run in found] == ["odd", "good"]


def test_what_was_not_looked_at_is_not_taken_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: RunSearch) -> Iterator[Run]:
        self.gap = "a run is too large"
        yield from ()

    monkeypatch.setattr(RunSearch, "runs", fails)
    with client("http://127.0.0.1:1") as mlflow:
        with pytest.raises(MlflowTooLarge, match="too large"):
            mlflow.find_run("1", tags={})
        assert list(mlflow.find_runs("1", tags={})) == []


@pytest.mark.parametrize(
    "place", ["s3://bucket/1/abc/artifacts", "mlflow-artifacts://other:5000/1/abc", "/srv/mlruns/1"]
)
def test_a_server_that_does_not_take_artifacts_is_told_apart(place: str) -> None:
    answer = {"run": {"info": {"artifact_uri": place}}}
    with FaultyProxy() as server, client(server.url) as mlflow:
        server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
        with pytest.raises(MlflowError, match="--serve-artifacts"):
            mlflow.log_artifact("r", "output.log.gz", io.BytesIO(b""))


def test_a_history_of_fat_answers_is_left_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.resources.mlflow.client.LARGEST_HISTORY", 10_000)
    answer = {"metrics": [{"key": "loss", "value": 1, "step": step, "timestamp": step} for step in range(1000)]}
    with FaultyProxy() as server, client(server.url) as mlflow:
        server.standing = ProxyFault(body=json.dumps(answer), content_type="application/json")
        assert mlflow.metric_history("r", "loss") == []
    assert "Left out the history of metric loss of MLflow run r" in caplog.text
