"""The checks in the training's own run: what is red, what is recorded, and that nothing is trained twice for it."""

from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg
import pytest

from orchestrator import names
from orchestrator.definitions import shared
from orchestrator.pipeline.component import TrainingPipeline
from orchestrator.pipeline.models.declared import ChampionBlock, Goal, MetricCheck
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.asset_runs import JOB, MODEL, NODE, train
from orchestrator_tests.support.attempts import World
from orchestrator_tests.support.logged_models import TINY
from orchestrator_tests.support.mlflow_client import post
from orchestrator_tests.support.model_scripts import ModelScript
from orchestrator_tests.support.recorded_builds import record_build

pytestmark = pytest.mark.services

REPOSITORY = Path(__file__).parents[3]
LOADER = "code/tiny_model.py"


def checked(minimum: float) -> TrainingPipeline:
    return TrainingPipeline(name="churn", checks={"accuracy": MetricCheck.model_validate({"min": minimum})})


@pytest.fixture
def script(world: World, tmp_path: Path) -> ModelScript:
    return ModelScript(world, tmp_path)


@pytest.fixture(autouse=True)
def _recorded(world: World, dagster: dg.DagsterInstance) -> None:
    dagster.add_dynamic_partitions("churn_builds", ["40"])
    record_build(dagster, world.build(40))


@pytest.mark.parametrize("implicit", [False, True], ids=["run of the job", "asset page"])
def test_a_model_that_does_not_pass_is_recorded_and_its_run_is_red(
    world: World,
    dagster: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    script: ModelScript,
    implicit: bool,
) -> None:
    script.gives(0.7)
    result = train(world, dagster, monkeypatch, settings=script.settings, implicit=implicit, pipeline=checked(0.9))
    assert not result.success
    failure = result.failure_data_for_node(f"{NODE}.record")
    assert failure is not None
    assert failure.user_failure_data is not None
    described = str(failure.user_failure_data.description)
    assert described == (
        "build 40 is trained and recorded, but its model does not pass a check: accuracy 0.7 is below min 0.9"
    )
    [event] = result.asset_materializations_for_node(NODE)
    run = world.mlflow.run(str(event.metadata["MLflow run ID"].value))
    assert run.status == "FINISHED"
    assert run.tags[names.MlflowTag.CHECKS] == "failed"
    evaluations = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert {name: check.passed for name, check in evaluations.items()} == {
        "logged_something": True,
        "accuracy": False,
        "loadable_model": True,
    }
    assert evaluations["accuracy"].severity == dg.AssetCheckSeverity.ERROR
    assert evaluations["accuracy"].blocking
    assert evaluations["accuracy"].metadata["value"].value == 0.7
    assert script.trainings == 1


def _job() -> dg.JobDefinition:
    pipeline = checked(0.9).build_defs(dg.ComponentTree.for_test().load_context)
    return dg.Definitions.merge(pipeline, shared()).resolve_job_def(JOB)


def test_a_red_run_is_executed_again_without_another_training(
    world: World, dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, script: ModelScript
) -> None:
    script.gives(0.7)
    for name, value in {**world.environment, **script.settings}.items():
        monkeypatch.setenv(name, value)
    job = dg.reconstructable(_job)
    tags = {"dagster/partition": "40"}
    with dg.execute_job(job, dagster, tags=tags) as first:
        assert not first.success
    run = dagster.get_run_by_id(first.run_id)
    assert run is not None
    assert run.tags[names.DagsterTag.FAILURE_REASON] == "STEP_FAILURE"

    # Somebody corrects the metric.
    trained = run.tags[names.RunTag.TRAINED]
    post(world.mlflow_server.url, "runs/log-metric", run_id=trained, key="accuracy", value=0.95, timestamp=2, step=1)
    options = dg.ReexecutionOptions.from_failure(first.run_id, dagster)
    with dg.execute_job(job, dagster, tags=dict(run.tags), reexecution_options=options) as second:
        assert second.success
    [record, *_] = dagster.fetch_materializations(MODEL, limit=2).records
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["MLflow run ID"].value == trained
    assert world.mlflow.run(trained).tags[names.MlflowTag.CHECKS] == "passed"
    assert script.trainings == 1


def test_a_model_that_nothing_but_its_own_folder_can_load_is_red_and_says_what_is_missing(
    world: World, dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loaded on the instance, by a real `mlflow run`, before that is given back."""
    files = {**TINY, LOADER: f"import beside\n{TINY[LOADER]}"}
    script = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import beside
from orchestrator_tests.support.logged_models import log_model
from orchestrator_tests.support.mlflow_client import post
uri, run_id = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
post(uri, "runs/log-metric", run_id=run_id, key="accuracy", value=0.9, timestamp=1, step=0)
log_model(uri, run_id, files={files!r})
"""
    source = tmp_path / "source"
    source.mkdir()
    for name, text in {"beside.py": "", "train.py": script}.items():
        (source / name).write_text(text)
    (source / "MLproject").write_text(f"name: p\nentry_points:\n  main: {{command: '{sys.executable} train.py'}}\n")
    pipeline = TrainingPipeline(
        name="churn", champion=ChampionBlock(metric="accuracy", goal=Goal.MAXIMIZE, model="churn-loaded")
    )
    with GitRemote(tmp_path / "git", source) as git:
        settings, config = {"MLPROJECT_URI": git.url}, {"version": git.head()}
        result = train(world, dagster, monkeypatch, settings=settings, config=dict(config), pipeline=pipeline)
    failure = result.failure_data_for_node(f"{NODE}.record")
    assert failure is not None
    assert failure.user_failure_data is not None
    described = str(failure.user_failure_data.description)
    assert described.endswith(
        "the model could not be loaded in the training's environment: ModuleNotFoundError: No module named 'beside'"
    ), described
    [check] = [each for each in result.get_asset_check_evaluations() if each.check_name == names.LOADABLE_MODEL]
    assert not check.passed
    assert "tiny_model.py" in str(check.metadata["last lines"].value)
