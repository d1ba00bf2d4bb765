"""What the checks of a trained model say, of runs that may hold anything."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

import pytest

from orchestrator import names
from orchestrator.errors import MlflowUnavailable
from orchestrator.pipeline.models import loadable
from orchestrator.pipeline.models.checks import (
    Comparison,
    _judge_loadable,
    evaluation_data,
    failure,
    judge,
    judge_metric,
)
from orchestrator.pipeline.models.declared import ChampionBlock, Goal, MetricCheck, ModelRules, model_rules
from orchestrator.resources.mlflow import Dataset, LoggedModel, MetricPoint, Mlflow, Run
from orchestrator.resources.mlflow.answers import FinalStatus
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_sandbox.proxy import FaultyProxy, ProxyFault
from orchestrator_tests.support.logged_models import FILES, MLMODEL, finished_run, log_model, read_dataset
from orchestrator_tests.support.mlflow_client import SHORT, client, post


def run(metrics: Mapping[str, float] | None = None, *, datasets: tuple[Dataset, ...] = (), run_id: str = "mine") -> Run:
    status: FinalStatus = "FINISHED"
    return Run(
        id=run_id,
        name="",
        experiment_id="1",
        status=status,
        start_time=None,
        end_time=None,
        params={},
        latest={key: MetricPoint(value, 0, 0) for key, value in (metrics or {}).items()},
        tags={},
        active=True,
        datasets=datasets,
    )


def rules(check: Mapping[str, object], *, goal: Goal = Goal.MAXIMIZE) -> ModelRules:
    return model_rules(
        "churn", {"accuracy": MetricCheck.model_validate(check)}, ChampionBlock(metric="accuracy", goal=goal)
    )


def champion(value: float | None, *, datasets: tuple[Dataset, ...] = ()) -> Comparison:
    return Comparison(run({} if value is None else {"accuracy": value}, datasets=datasets, run_id="theirs"), "3")


@pytest.mark.parametrize(
    ("check", "value", "compared", "passed", "words"),
    [
        ({"min": 0.9}, 0.9, Comparison(), True, "as it has to be"),
        ({"min": 0.9}, 0.89, Comparison(), False, "accuracy 0.89 is below min 0.9"),
        ({"min": 0, "max": 0.9}, 0.95, Comparison(), False, "accuracy 0.95 is above max 0.9"),
        ({"min": 0.9}, None, Comparison(), False, "no metric accuracy; it has: loss"),
        ({"min": 0.9}, math.nan, Comparison(), False, "accuracy is nan, which is no number"),
        ({"min": 0.9}, math.inf, Comparison(), False, "no number"),
        ({"min": 0.9}, 1.7976931348623157e308, Comparison(), False, "no number"),
        ({"worse_than_champion_by_at_most": "5%"}, math.nan, champion(0.9), False, "no number"),
        ({"worse_than_champion_by_at_most": "5%"}, 0.1, Comparison(), True, "there is no champion yet"),
        ({"worse_than_champion_by_at_most": "5%"}, 0.86, champion(0.9), True, "as it has to be"),
        ({"worse_than_champion_by_at_most": "5%"}, 0.85, champion(0.9), False, "0.855, which is 5% worse than 0.9"),
        ({"worse_than_champion_by_at_most": 0.1}, 0.6, champion(0.7), True, "as it has to be"),
        ({"worse_than_champion_by_at_most": 0.1}, 0.59, champion(0.7), False, "version 3"),
        ({"worse_than_champion_by_at_most": 0.1}, 0.59, champion(None), True, "version 3, has no accuracy"),
        ({"worse_than_champion_by_at_most": 0.1}, 0.59, champion(math.nan), True, "nothing to compare with"),
        ({"worse_than_champion_by_at_most": 0.1}, 0.9, Comparison(fault="MLflow is away"), False, "MLflow is away"),
        ({"min": 0.9, "worse_than_champion_by_at_most": 0.1}, 0.8, champion(0.95), False, "below min 0.9; accuracy"),
    ],
)
def test_a_metric_is_judged(
    check: Mapping[str, object], value: float | None, compared: Comparison, passed: bool, words: str
) -> None:
    [rule] = rules(check).metrics
    judgement = judge_metric(rule, run({"loss": 1.0} | ({} if value is None else {"accuracy": value})), compared)
    assert judgement.passed is passed
    assert words in judgement.sentence


def test_a_lower_value_may_be_the_better_one() -> None:
    [rule] = rules({"worse_than_champion_by_at_most": "10%"}, goal=Goal.MINIMIZE).metrics
    assert judge_metric(rule, run({"accuracy": 3.3}), champion(3.0)).passed
    assert not judge_metric(rule, run({"accuracy": 3.31}), champion(3.0)).passed
    assert judge_metric(rule, run({"accuracy": -9.0}), champion(3.0)).passed


def test_the_result_shows_value_bound_and_champion() -> None:
    [rule] = rules({"min": 0.5, "worse_than_champion_by_at_most": "5%"}).metrics
    facts = judge_metric(rule, run({"accuracy": 0.88}), champion(0.9)).facts
    shown = {key: value.value for key, value in facts.items()}
    assert shown == {
        "metric": "accuracy",
        "min": 0.5,
        "value": 0.88,
        "worse than the champion by at most": "5%",
        "champion's version": "3",
        "champion's value": 0.9,
        "bound": pytest.approx(0.855),
    }


def test_other_evaluation_data_is_a_warning() -> None:
    [rule] = rules({"worse_than_champion_by_at_most": "5%"}).metrics
    new, old = Dataset("holdout", "b", "eval"), Dataset("holdout", "a", "eval")
    trained_on = Dataset("all", "x", "training")
    same = judge_metric(rule, run({"accuracy": 0.9}, datasets=(old, trained_on)), champion(0.9, datasets=(old,)))
    assert "warning" not in same.facts
    assert same.facts["evaluation data"].value == "holdout a"
    other = judge_metric(rule, run({"accuracy": 0.9}, datasets=(new,)), champion(0.9, datasets=(old,)))
    assert other.passed
    assert other.facts["warning"].value == "not the same evaluation data: holdout b, and holdout a of the champion"
    assert "warning: not the same evaluation data" in other.sentence
    [bounded] = rules({"min": 0.5}).metrics  # which compares nothing itself: but the champion is chosen by it
    assert (
        "warning"
        in judge_metric(bounded, run({"accuracy": 0.9}, datasets=(new,)), champion(0.9, datasets=(old,))).facts
    )
    silent = judge_metric(rule, run({"accuracy": 0.9}), champion(0.9, datasets=(old,)))
    assert "unknown, and holdout a" in silent.sentence


def test_what_was_trained_on_is_no_evaluation_data() -> None:
    assert evaluation_data(run(datasets=(Dataset("a", "1", "Training"), Dataset("b", "2", "")))) == "b 2"


MODEL = LoggedModel(run_id="a", id="m-1", name="model", source="models:/m-1")


@pytest.mark.parametrize(
    ("content", "files", "words"),
    [
        (MLMODEL, ["MLmodel", "model.skops"], ""),
        (MLMODEL, ["MLmodel", "requirements.txt"], "has no model.skops, which its MLmodel names"),
        ("flavors: {python_function: {data: data}}", ["MLmodel", "data/model.xgb"], ""),
        ("flavors: {python_function: {loader_module: x}}", ["MLmodel"], "no file besides MLmodel"),
        ("flavors: {}", ["MLmodel", "x"], "names no flavor"),
        ("flavors: 7", ["MLmodel", "x"], "names no flavor"),
        ("", ["MLmodel", "x"], "names no flavor"),
        ("<html>We'll be right back</html>", ["MLmodel", "x"], "names no flavor"),
        ("a: [", ["MLmodel", "x"], "cannot be read"),
        ("[" * 100_000, ["MLmodel", "x"], "cannot be read"),
        ("a: 2026-13-45", ["MLmodel", "x"], "cannot be read"),
        ("flavors: !!python/object/apply:os.system [id]", ["MLmodel", "x"], "cannot be read"),
        ("a: &a {b: c}\nflavors: {<<: *a}", ["MLmodel", "x"], "cannot be read"),
    ],
)
def test_a_model_is_loadable_by_what_its_files_say(content: str, files: list[str], words: str) -> None:
    found = loadable.read(content.encode(), files, MODEL)
    assert words in found.fault if words else not found.fault


@pytest.fixture(scope="module")
def mlflow(mlflow_server: MlflowServer) -> Iterator[Mlflow]:
    with client(mlflow_server.url) as connected:
        yield connected


class Registered:
    """A registered model whose champion has an accuracy of 0.9, on a real server."""

    def __init__(self, server: MlflowServer, mlflow: Mlflow) -> None:
        self.url = server.url
        self.experiment = server.experiment("check tests")
        self.model = f"churn-{uuid4().hex[:8]}"
        self.mlflow = mlflow
        self.champion = self.trained(0.9, digest="a")
        logged = mlflow.registry.model_of(mlflow.run(self.champion))
        assert logged is not None
        mlflow.registry.require_registered(self.model)
        version = mlflow.registry.register(self.model, logged, tags={})
        mlflow.registry.set_alias(version, names.CHAMPION_ALIAS)

    def trained(self, accuracy: float, *, digest: str, files: Mapping[str, str] = FILES) -> str:
        run_id = finished_run(self.url, self.experiment, metrics={"accuracy": accuracy})
        read_dataset(self.url, run_id, digest=digest)
        log_model(self.url, run_id, files=files)
        return run_id

    def rules(self, **check: object) -> ModelRules:
        checks = {"accuracy": MetricCheck.model_validate(check)}
        return model_rules("churn", checks, ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model=self.model))


@pytest.fixture(scope="module")
def registered(mlflow_server: MlflowServer, mlflow: Mlflow) -> Registered:
    return Registered(mlflow_server, mlflow)


def test_the_verdict_stands_on_the_mlflow_run(registered: Registered, mlflow: Mlflow) -> None:
    rules = registered.rules(worse_than_champion_by_at_most="5%")
    good, bad = registered.trained(0.88, digest="a"), registered.trained(0.5, digest="b")
    assert failure(judge(mlflow, mlflow.run(good), rules), partition="7") == ""
    judgements = judge(mlflow, mlflow.run(bad), rules)
    assert [(judgement.name, judgement.passed) for judgement in judgements] == [
        ("accuracy", False),
        ("loadable_model", True),
    ]
    sentence = failure(judgements, partition="7")
    assert "build 7 is trained and recorded, but its model does not pass a check: accuracy 0.5 is worse" in sentence
    assert "holdout b, and holdout a of the champion" in sentence
    assert mlflow.run(good).tags[names.MlflowTag.CHECKS] == "passed"
    tags = mlflow.run(bad).tags
    assert tags[names.MlflowTag.CHECKS] == "failed"
    assert "accuracy 0.5 is worse" in tags[names.MlflowTag.CHECKS_REASON]

    # Judged anew, with another bound.
    judge(mlflow, mlflow.run(bad), registered.rules(min=0.4))
    assert mlflow.run(bad).tags[names.MlflowTag.CHECKS] == "passed"
    assert mlflow.run(bad).tags[names.MlflowTag.CHECKS_REASON] == ""


def test_a_run_whose_model_is_broken_does_not_pass(registered: Registered, mlflow: Mlflow) -> None:
    run_id = registered.trained(0.99, digest="a", files={"MLmodel": MLMODEL, "other": "x"})
    *_, judgement = judge(mlflow, mlflow.run(run_id), registered.rules(min=0))
    assert (judgement.name, judgement.passed) == ("loadable_model", False)
    assert "has no model.skops" in judgement.sentence
    without = finished_run(registered.url, registered.experiment, metrics={"accuracy": 0.99})
    *_, judgement = judge(mlflow, mlflow.run(without), registered.rules(min=0))
    assert f"MLflow run {without} has no model" in judgement.sentence


@pytest.mark.parametrize(
    ("tag", "passed", "words"),
    [
        (None, True, "all files of the model are there; it was not loaded, because nobody did so where it was trained"),
        (
            {"state": "loaded", "predicted": True, "seconds": 3.14159, "python": "3.11.2"},
            True,
            "loaded in the training's environment (Python 3.11.2) in 3.14 s and answered its input example",
        ),
        ({"state": "loaded", "model": "m-1"}, True, "and has no input example to answer"),
        (
            {"state": "failed", "reason": "Traceback\nModuleNotFoundError: No module named 'churn'"},
            False,
            "named 'churn'",
        ),
        ({"state": "failed", "reason": ""}, False, "it does not say why"),
        ({"state": "unknown", "reason": "no Python has MLflow"}, True, "was not loaded, because no Python has MLflow"),
        ({"state": "failed", "model": "m-2"}, True, "because m-2 was the newest model when the training ended"),
        ({"state": "perfect"}, True, "cannot be read"),
        ({"state": "loaded", "seconds": "long"}, True, "cannot be read"),
        ("[" * 3000, True, "cannot be read"),
        ("[]", True, "cannot be read"),
        ("null", True, "cannot be read"),
    ],
)
def test_what_the_instance_says_of_loading_it_is_part_of_the_check(
    tag: object, passed: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may log to the run may have written it."""
    text = tag if isinstance(tag, str) else json.dumps(tag)
    tags = {} if tag is None else {names.MlflowTag.MODEL_LOADED: text}
    read = loadable.read(MLMODEL.encode(), list(FILES), MODEL)
    of_run = dataclasses.replace(run(), tags=tags)
    found = dataclasses.replace(read, trial=loadable.LoadTrial.of(of_run, MODEL))
    monkeypatch.setattr(loadable, "look", lambda registry, run: found)
    judgement = _judge_loadable(cast("Mlflow", SimpleNamespace(registry=None)), of_run, must_pass=True)
    assert judgement.passed is passed
    assert words in judgement.sentence
    assert ("last lines" in judgement.facts) is not passed


def test_without_a_champion_to_find_a_missing_model_is_a_warning(registered: Registered, mlflow: Mlflow) -> None:
    only_checks = model_rules("churn", {"accuracy": MetricCheck.model_validate({"min": 0})}, None)
    without = mlflow.run(finished_run(registered.url, registered.experiment, metrics={"accuracy": 0.99}))
    judgements = judge(mlflow, without, only_checks)
    assert [judgement.passed for judgement in judgements] == [True, False]
    assert failure(judgements, partition="7") == ""


def test_a_champion_whose_run_was_deleted_still_counts(registered: Registered, mlflow: Mlflow) -> None:
    post(registered.url, "runs/delete", run_id=registered.champion)
    try:
        run_id = registered.trained(0.5, digest="a")
        judgement, _ = judge(mlflow, mlflow.run(run_id), registered.rules(worse_than_champion_by_at_most="5%"))
        assert judgement.facts["champion's value"].value == 0.9
    finally:
        post(registered.url, "runs/restore", run_id=registered.champion)


def test_a_check_that_cannot_look_has_not_passed_and_says_why(registered: Registered) -> None:
    run_id = registered.trained(0.9, digest="a")
    rules = registered.rules(worse_than_champion_by_at_most="5%")
    with FaultyProxy(registered.url) as proxy, client(proxy.url, policy=SHORT.with_total(0)) as shaky:
        run = shaky.run(run_id)
        unwell = ProxyFault(status=503)
        with proxy.faulty(unwell, applies=lambda request: "registered-models" in request.path):
            judgement, _ = judge(shaky, run, rules)
        assert not judgement.passed
        assert "the champion cannot be looked at: MLflow at" in judgement.sentence
        with proxy.faulty(unwell, applies=lambda request: "artifacts" in request.path):
            _, judgement = judge(shaky, run, rules)
        assert not judgement.passed
        assert "cannot be looked at" in judgement.sentence
        assert shaky.run(run_id).tags[names.MlflowTag.CHECKS] == "failed"
        with (
            proxy.faulty(unwell, applies=lambda request: "log-batch" in request.path),
            pytest.raises(MlflowUnavailable),
        ):
            judge(shaky, run, rules)
