"""Reading what a server says that calls itself MLflow: any JSON gives values, or an error that the client explains."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import MlflowError
from orchestrator.resources.mlflow import Run
from orchestrator.resources.mlflow.answers import Experiment, points_page, runs_page
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
