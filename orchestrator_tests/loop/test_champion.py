"""From Git pushes alone, under load: which model gets into use, and which does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from orchestrator import names
from orchestrator.names import CHAMPION_ALIAS, MlflowTag, VersionTag
from orchestrator.resources.jenkins.answers import Build
from orchestrator.resources.mlflow import Mlflow
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.demo.outcome import OutcomeReader
from orchestrator_sandbox.stack import COMPONENT, PIPELINE, TRAINED_MODEL, Stack
from orchestrator_tests.support.inference_host import SERVER, Clients, HAProxyHost
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

PROJECT = f"""\
name: light
entry_points:
  main:
    command: "{sys.executable} train.py"
"""
TRAINING = f"""\
import os, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from orchestrator_tests.support.logged_models import TINY, log_model, read_dataset
from orchestrator_tests.support.mlflow_client import post
uri, run_id = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"]
post(uri, "runs/log-metric", run_id=run_id, key="accuracy", value=ACCURACY, timestamp=1, step=0)
read_dataset(uri, run_id, digest="a")
served = {{path.name: path.read_text() for path in pathlib.Path("served").iterdir()}}
log_model(uri, run_id, files={{**TINY, **served}})
"""
GREEN = "def test_it():\n    pass\n"
RED = "def test_it():\n    assert 1 + 1 == 3\n"


def defs_yaml(host: HAProxyHost) -> str:
    """A pipeline with checks, a champion and an inference host."""
    attributes = {
        "name": PIPELINE,
        "checks": {"accuracy": {"min": 0.4, "worse_than_champion_by_at_most": "5%"}},
        "champion": {"metric": "accuracy", "goal": "maximize", "model": "digits"},
        "deployment": {
            "when": "automatic",
            "target": {"host": vars(host.spec()) | {"key_path": str(host.spec().key_path)}},
        },
    }
    return yaml.safe_dump({"type": COMPONENT, "attributes": attributes})


@dataclass(frozen=True)
class Loop:
    """The stack, with Dagster running, and the inference host that its models get into use on."""

    stack: Stack
    dagster: DagsterApi
    mlflow: Mlflow
    host: HAProxyHost

    def push(self, accuracy: float, *, kind: str = "") -> RunSummary:
        """Commit a training that gives this accuracy; its run, once that has ended.

        Args:
            accuracy: also what the model predicts.
            kind: how its server fails; see `inference_host.SERVER`.
        """
        before = {run.id for run in self.trainings()}
        self.commit(accuracy, kind=kind)
        until(lambda: any(run.over and run.id not in before for run in self.trainings()), seconds=300, every=0.5)
        return next(run for run in self.trainings() if run.id not in before)

    def commit(self, accuracy: float, *, kind: str = "", tests: str = GREEN) -> str:
        files = {"MLproject": PROJECT, "train.py": TRAINING.replace("ACCURACY", str(accuracy))}
        served = {
            "serve.py": SERVER,
            "version.txt": str(accuracy),
            "kind.txt": kind,
            "serving_input_example.json": '{"inputs": [[1.0]]}',
        }

        def edit(tree: Path) -> None:
            (tree / "served").mkdir(exist_ok=True)
            (tree / "tests" / "test_model.py").write_text(tests)
            for name, text in {**files, **{f"served/{name}": text for name, text in served.items()}}.items():
                (tree / name).write_text(text)

        self.stack.git.commit(f"Reach {accuracy}", edit)
        return self.stack.git.head()

    def await_build(self, commit: str) -> Build:
        """Jenkins' build of a commit, once that has ended."""

        def found() -> Build | None:
            builds = OutcomeReader(self.stack.jenkins.env(), dagster_url="").builds()
            return next((build for build in builds if build.commit == commit and build.finished), None)

        build = until(found, seconds=300, every=0.5)
        assert build is not None
        return build

    def trainings(self) -> list[RunSummary]:
        return [run for run in self.dagster.runs(limit=100) if run.job == names.training_job(PIPELINE)]

    def decisions(self) -> int:
        """How often the champion was chosen."""
        return len(self.ended(names.champion_job(PIPELINE), "SUCCESS"))

    def deployments(self, status: str) -> list[RunSummary]:
        return self.ended(names.deployment_job(PIPELINE), status)

    def ended(self, job: str, status: str) -> list[RunSummary]:
        return [run for run in self.dagster.runs(limit=100) if (run.job, run.status) == (job, status)]

    def champion(self) -> str:
        registered = self.mlflow.registry.registered("digits")
        return registered.aliases.get(CHAMPION_ALIAS, "") if registered else ""

    def in_use(self) -> str:
        release = self.host.target().state()
        return release.version if release else ""

    def await_predictions(self, accuracy: float) -> None:
        """Wait until the inference host answers with the model of this accuracy."""
        until(lambda: self.host.asked() == (200, str(accuracy)), seconds=300, every=0.5)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    defs = tmp_path_factory.mktemp("defs")
    (defs / PIPELINE).mkdir()
    settings = {"ORCHESTRATOR_DEFS": str(defs)}
    with (
        HAProxyHost(tmp_path_factory.mktemp("host")) as host,
        Stack(tmp_path_factory.mktemp("stack"), settings=settings) as stack,
    ):
        (defs / PIPELINE / "defs.yaml").write_text(defs_yaml(host))
        dagster = stack.start_dagster()
        with client(stack.mlflow.url) as mlflow:
            yield Loop(stack, dagster, mlflow, host)


def test_a_better_model_gets_into_use_and_a_worse_broken_or_bad_one_does_not(loop: Loop) -> None:
    first = loop.push(0.8)
    assert first.status == "SUCCESS", loop.dagster.failure(first.id)
    loop.await_predictions(0.8)
    with Clients(loop.host, 2, pause=0.2) as load:
        assert loop.push(0.9).status == "SUCCESS"
        loop.await_predictions(0.9)
        until(lambda: (len(loop.deployments("SUCCESS")), loop.decisions()) == (2, 2), seconds=120, every=0.5)
        assert (loop.champion(), loop.in_use()) == ("2", "2")

        worse = loop.push(0.6)
        assert worse.status == "FAILURE"
        assert "accuracy 0.6 is worse than 0.855, which is 5% worse than 0.9" in str(loop.dagster.failure(worse.id))
        assert worse.partition is not None
        [recorded] = loop.dagster.materialisations(TRAINED_MODEL, partition=worse.partition)
        run = loop.mlflow.run(recorded.metadata["MLflow run ID"])
        assert (run.status, run.tags[MlflowTag.CHECKS]) == ("FINISHED", "failed")
        until(lambda: loop.decisions() == 3, seconds=120, every=0.5)
        assert (loop.champion(), loop.in_use()) == ("2", "2")
        assert [version.run_id for version in loop.mlflow.registry.versions("digits")][-1] == run.id

        broken = loop.await_build(loop.commit(0.99, tests=RED))
        assert not broken.succeeded()

        assert loop.push(0.95, kind="rejects").status == "SUCCESS"
        until(lambda: loop.deployments("FAILURE"), seconds=300, every=0.5)
        [failed] = loop.deployments("FAILURE")
        assert "column x is missing" in str(loop.dagster.failure(failed.id))
        bad = loop.mlflow.registry.versions("digits")[-1]
        assert json.loads(bad.tags[VersionTag.DEPLOYMENT_FAILED])["by"] == "deployment"
        assert (bad.version, loop.champion(), loop.in_use()) == ("4", "2", "2")
        load.await_answers(4)
    assert set(load.answers) == {(200, "0.8"), (200, "0.9")}
    assert str(broken.number) not in {run.partition for run in loop.trainings()}
    assert str(broken.number) not in loop.dagster.partitions(TRAINED_MODEL)
