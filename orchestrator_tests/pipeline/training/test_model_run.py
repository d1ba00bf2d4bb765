"""Which of the MLflow runs of a training is shown as its model, and what is said of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from orchestrator.pipeline.training.finished import FinishedTraining, Registered
from orchestrator.pipeline.training.metadata import logged_something, training_metadata
from orchestrator.pipeline.training.model_run import choose
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow import MetricPoint, ModelVersion, Run
from orchestrator.resources.mlflow.answers import runs_page
from orchestrator.settings.groups import ModelChoice

BEGUN = datetime(2031, 5, 17, tzinfo=UTC)
BUILD = Build(
    number=12,
    timestamp=1_700_000_000_000,
    result="SUCCESS",
    job="churn",
    duration_ms=1000,
    url="https://jenkins.example.com/job/churn/12/",
    commit="c0ffee" * 6 + "c0ff",
    branch="main",
    repository="https://github.com/acme/churn.git",
)


def run(id: str, metrics: Mapping[str, float] | None = None, *, parent: str = "", **changed: Any) -> Run:
    values: dict[str, Any] = {
        "name": f"run {id}",
        "experiment_id": "3",
        "status": "FINISHED",
        "start_time": BEGUN + timedelta(seconds=ord(id[0])),
        "end_time": None,
        "params": {},
        "latest": {key: MetricPoint(value, 0, 0) for key, value in (metrics or {}).items()},
        "tags": {"mlflow.parentRunId": parent} if parent else {},
        "active": True,
    }
    return Run(id=id, **{**values, **changed})


def chosen(root: Run, *others: Run, how: str = "") -> str:
    return choose(root, others, ModelChoice.parse(how) if how else None).run.id


class TestByDefault:
    def test_the_run_that_we_made_is_the_model_when_anything_was_logged_to_it(self) -> None:
        assert chosen(run("a", {"acc": 0.0}), run("b", {"acc": 0.1}), run("c", {"acc": 0.2})) == "a"
        assert chosen(run("a", has_model=True), run("b", {"acc": 0.1})) == "a"
        assert chosen(run("a")) == "a"
        assert chosen(run("a"), run("b"), run("c")) == "a"

    def test_else_the_only_other_one_that_has_something(self) -> None:
        assert chosen(run("a"), run("b", {"acc": 0.9}), run("c")) == "b"
        assert chosen(run("a", {"system/cpu": 3}), run("b", has_model=True)) == "b"

    def test_else_the_last_step_and_no_trial_in_it(self) -> None:
        steps = [run("b", {"rows": 3}, parent="a"), run("c", {"acc": 1}, parent="a")]
        assert chosen(run("a"), *steps, run("d", {"acc": 2}, parent="c"), run("e", parent="a")) == "c"

    def test_a_run_that_failed_is_no_model(self) -> None:
        assert chosen(run("a"), run("b", {"acc": 0.9}), run("c", {"acc": 1}, status="FAILED")) == "b"


class TestAsTheSettingSays:
    TRIALS = (run("b", {"acc": 0.3, "loss": 9}), run("c", {"acc": 0.1, "loss": 2}), run("d", {"acc": 0.2}))

    @pytest.mark.parametrize(
        ("how", "id"),
        [
            ("root", "a"),
            ("last", "d"),
            ("best:acc:max", "b"),
            ("best:acc:min", "a"),
            ("best:loss:min", "c"),
            ("best:f1:max", "a"),
        ],
    )
    def test_it_is_chosen(self, how: str, id: str) -> None:
        assert chosen(run("a", {"acc": 0.0}), *self.TRIALS, how=how) == id

    def test_the_last_of_one_is_that_one(self) -> None:
        assert chosen(run("a"), how="last") == "a"

    def test_what_is_no_number_or_failed_is_not_the_best(self) -> None:
        trials = [
            run("b", {"acc": math.nan}),
            run("c", {"acc": math.inf}),
            run("d", {"acc": 1.7976931348623157e308}),
            run("e", {"acc": 9.0}, status="FAILED"),
            run("f", {"acc": 0.5}),
            run("g", {"acc": 0.5}),
        ]
        assert chosen(run("a"), *trials, how="best:acc:max") == "f"

    def test_a_metric_that_no_run_has_is_said_and_turns_nothing_red(self) -> None:
        reason = choose(run("a", {"acc": 1}), self.TRIALS, ModelChoice.parse("best:f1:max")).reason
        assert reason.startswith("no run has the metric f1 that MODEL_RUN=best:f1:max asks for")

    def test_runs_that_are_each_others_parents_are_no_trap(self) -> None:
        assert chosen(run("a"), run("b", {"acc": 1}, parent="c"), run("c", {"acc": 1}, parent="b")) == "c"


def metadata(root: Run, *others: Run, how: str = "", registered: tuple[Registered, ...] = ()) -> dict[str, Any]:
    choice = choose(root, others, ModelChoice.parse(how) if how else None)
    finished = FinishedTraining(
        run=choice.run,
        url="http://mlflow.example.com/",
        histories={},
        usage=None,
        root=root,
        others=others,
        reason=choice.reason,
        registered=registered,
    )
    result = logged_something(finished, dg.AssetKey(["churn", "trained_model"]))
    shown = training_metadata(finished, BUILD)
    tables = {
        key: [dict(record.data) for record in value.records]
        for key, value in shown.items()
        if isinstance(value, dg.TableMetadataValue)
    }
    return {**{key: value.value for key, value in shown.items()}, **tables, "passed": result.passed}


class TestOnTheAsset:
    def test_it_says_which_of_how_many(self) -> None:
        shown = metadata(run("a", {"acc": 0.0}), run("b", {"acc": 0.1}), run("c", {"acc": 0.2}))
        assert shown["model"] == "1 of 3 runs of this training: its own, the first"
        assert shown["MLflow run ID"] == "a"
        assert "MLflow run of the training" not in shown
        assert [(row["run ID"], row["what"], row["metrics"]) for row in shown["runs"]] == [
            ("a", "the model, the training's own", "acc 0"),
            ("b", "", "acc 0.1"),
            ("c", "", "acc 0.2"),
        ]
        [best] = shown["best runs"]
        assert (best["metric"], best["highest"], best["of run"], best["of the run"]) == ("acc", 0.2, "run c", "run a")

    def test_another_one_than_the_trainings_own_has_its_metrics_and_the_parameters_of_both(self) -> None:
        root = run("a", {"acc": 0.0}, params={"trials": "2", "depth": "1"})
        shown = metadata(root, run("b", {"acc": 0.1}, params={"depth": "7"}), how="best:acc:max")
        assert shown["model"] == "1 of 2 runs of this training: acc 0.1 is the highest of them all"
        assert (shown["MLflow run ID"], shown["MLflow run of the training"]) == ("b", "a")
        assert shown["metrics/acc"] == 0.1
        assert {row["parameter"]: row["value"] for row in shown["parameters"]} == {"trials": "2", "depth": "7"}

    def test_one_run_is_no_table(self) -> None:
        shown = metadata(run("a", {"acc": 0.0}))
        assert not {"runs", "best runs"} & set(shown)
        assert shown["model"] == "the only run of this training"

    def test_registered_versions_are_named_with_their_run(self) -> None:
        trial = run("b", has_model=True)
        versions = (Registered(run("a"), ModelVersion("churn", "3")), Registered(trial, ModelVersion("tuned", "1")))
        shown = metadata(run("a", has_model=True), trial, registered=versions)
        assert shown["registered models"] == "churn v3, tuned v1 (of run run b)"

    @pytest.mark.parametrize(
        ("root", "others", "passed"),
        [
            (run("a"), [], False),
            (run("a", {"system/cpu": 1}), [run("b")], False),
            (run("a", {"acc": 1}), [], True),
            (run("a", has_model=True), [], True),
            (run("a"), [run("b", {"acc": 1})], True),
        ],
    )
    def test_a_training_that_logged_nothing_gets_a_warning(self, root: Run, others: list[Run], passed: bool) -> None:
        assert metadata(root, *others)["passed"] is passed
        finished = FinishedTraining(run=root, url="", histories={}, usage=None, root=root)
        assert logged_something(finished, dg.AssetKey(["a"])).severity == dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize(
    ("extra", "has"),
    [
        ({"outputs": {"model_outputs": [{"model_id": "m-1"}]}}, True),
        ({"outputs": {}}, False),
        ({"outputs": None}, False),
        ({"data": {"tags": [{"key": "mlflow.log-model.history", "value": "[{}]"}]}}, True),
    ],
)
def test_a_model_is_found_where_mlflow_2_and_3_note_it(extra: dict[str, Any], has: bool) -> None:
    info = {"run_id": "a", "experiment_id": "1", "status": "FINISHED"}
    [[found], _] = runs_page({"runs": [{"info": info, **extra}]})
    assert found.has_model is has
