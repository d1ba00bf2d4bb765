"""From Git pushes alone: a better model becomes the champion, a worse one is trained and recorded, and does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import names
from orchestrator.names import CHAMPION_ALIAS, MlflowTag
from orchestrator.resources.mlflow import Mlflow
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.stack import PIPELINE, TRAINED_MODEL, Stack
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

DEFS = """\
type: orchestrator.pipeline.component.TrainingPipeline
attributes:
  name: training
  checks:
    accuracy: {min: 0.4, worse_than_champion_by_at_most: 5%}
  champion: {metric: accuracy, goal: maximize, model: digits}
"""
PROJECT = f"""\
name: light
entry_points:
  main:
    command: "{sys.executable} train.py"
"""
TRAINING = f"""\
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from orchestrator_tests.support.logged_models import TINY, log_model, read_dataset
from orchestrator_tests.support.mlflow_client import post
uri, run_id = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
post(uri, "runs/log-metric", run_id=run_id, key="accuracy", value=ACCURACY, timestamp=1, step=0)
read_dataset(uri, run_id, digest="a")
log_model(uri, run_id, files=TINY)
"""


@dataclass(frozen=True)
class Loop:
    """The stack, with Dagster running."""

    stack: Stack
    dagster: DagsterApi
    mlflow: Mlflow

    def push(self, accuracy: float) -> RunSummary:
        """Commit a training that gives this accuracy; its run, once that has ended."""
        before = {run.id for run in self._trainings()}
        commit(self.stack, accuracy)
        until(lambda: any(run.over and run.id not in before for run in self._trainings()), seconds=300, every=0.5)
        return next(run for run in self._trainings() if run.id not in before)

    def _trainings(self) -> list[RunSummary]:
        return [run for run in self.dagster.runs() if run.job == names.training_job(PIPELINE)]

    def decisions(self) -> int:
        """How often the champion was chosen."""
        job = names.champion_job(PIPELINE)
        return sum(run.job == job and run.status == "SUCCESS" for run in self.dagster.runs())

    def champion(self) -> str:
        registered = self.mlflow.registry.registered("digits")
        return registered.aliases.get(CHAMPION_ALIAS, "") if registered else ""


def commit(stack: Stack, accuracy: float) -> None:
    def edit(tree: Path) -> None:
        (tree / "MLproject").write_text(PROJECT)
        (tree / "train.py").write_text(TRAINING.replace("ACCURACY", str(accuracy)))
        (tree / "tests" / "test_model.py").write_text("def test_it():\n    pass\n")

    stack.git.commit(f"Reach {accuracy}", edit)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    defs = tmp_path_factory.mktemp("defs")
    (defs / "training").mkdir()
    (defs / "training" / "defs.yaml").write_text(DEFS)
    settings = {"ORCHESTRATOR_DEFS": str(defs)}
    with Stack(tmp_path_factory.mktemp("stack"), settings=settings) as stack:
        dagster = stack.start_dagster()
        with client(stack.mlflow.url) as mlflow:
            yield Loop(stack, dagster, mlflow)


def test_a_better_model_is_promoted_and_a_worse_one_recorded_only(loop: Loop) -> None:
    first = loop.push(0.8)
    assert first.status == "SUCCESS", loop.dagster.failure(first.id)
    until(lambda: loop.champion() == "1", seconds=120)
    assert loop.push(0.9).status == "SUCCESS"
    until(lambda: loop.champion() == "2", seconds=120)

    until(lambda: loop.decisions() == 2, seconds=120)  # its alias is set before its run has ended
    worse = loop.push(0.6)
    assert worse.status == "FAILURE"
    assert "accuracy 0.6 is worse than 0.855, which is 5% worse than 0.9" in str(loop.dagster.failure(worse.id))
    assert worse.partition is not None
    [recorded] = loop.dagster.materialisations(TRAINED_MODEL, partition=worse.partition)
    run = loop.mlflow.run(recorded.metadata["MLflow run ID"])
    assert (run.status, run.tags[MlflowTag.CHECKS]) == ("FINISHED", "failed")
    until(lambda: loop.decisions() == 3, seconds=120)
    assert loop.champion() == "2"
    assert [version.run_id for version in loop.mlflow.registry.versions("digits")][-1] == run.id
