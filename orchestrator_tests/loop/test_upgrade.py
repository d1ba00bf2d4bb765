"""One `serve` is stopped in mid-training, and another one started: nothing is lost, and nothing is done twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.demo.outcome import OutcomeReader
from orchestrator_sandbox.stack import TRAINED_MODEL, Stack
from orchestrator_tests.support.commands import running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until
from orchestrator_tests.support.waiting_training import (
    instances,
    kill_all,
    mlflow_runs,
    waiting_project,
    workers_of,
)

pytestmark = pytest.mark.services


def test_a_new_serve_takes_over_what_the_old_one_has_begun(tmp_path: Path) -> None:
    training = tmp_path / "training"
    training.mkdir()
    with Stack(tmp_path / "stack") as stack, ExitStack() as cleanup:
        stack.git.commit("Wait for the upgrade", waiting_project(training))
        jenkins = OutcomeReader(stack.jenkins.env(), dagster_url="")
        until(lambda: [build for build in jenkins.builds() if build.commit == stack.git.head() and build.finished])
        environment = {**stack.dagster_environment(), "PYTHONPATH": str(PROJECT)}
        words = ("serve", "--port", str(stack.port))
        old_place, new_place = tmp_path / "old", tmp_path / "new"
        old_place.mkdir()
        new_place.mkdir()
        dagster = cleanup.enter_context(DagsterApi(stack.dagster_url, token=stack.dagster_token))

        with running(*words, cwd=old_place, environment=environment) as old:
            old.await_output("Dagster runs on")
            until(lambda: (training / "begun").exists(), seconds=240, every=0.3)
            (run,) = dagster.runs()
            workers = workers_of(old)
            assert workers
            cleanup.callback(kill_all, workers)
            assert old.end() in (0, 143)
            assert "trainings that ran go on to their end" in old.output
            assert all(worker.is_running() for worker in workers)
        # What a container's end does: nobody tells the worker, and the janitor finds out.
        kill_all(workers)

        with running(*words, cwd=new_place, environment=environment) as new:
            new.await_output("Dagster runs on")
            until(lambda: requests.get(f"{stack.dagster_url}/health/ready", timeout=30).ok, seconds=120, every=1)
            until(lambda: len(dagster.runs(partition=run.partition)) == 2, seconds=400, every=1)
            retry = next(each for each in dagster.runs(partition=run.partition) if each.id != run.id)
            (training / "go").touch()
            until(lambda: dagster.run(retry.id).over, seconds=240, every=0.5)
            assert dagster.run(retry.id).status == "SUCCESS"
            assert dagster.run(run.id).status == "FAILURE"
            (recorded,) = mlflow_runs(environment, run.partition or "")
            assert recorded["info"]["status"] == "FINISHED"
            assert instances(environment) == ["terminated"]
            assert (training / "begun").read_text() == "once\n"
            (model,) = dagster.materialisations(TRAINED_MODEL, partition=run.partition or "")
            assert model.run_id == retry.id
            scraped = requests.get(
                f"{stack.dagster_url}/metrics",
                headers={"Authorization": f"Bearer {stack.dagster_token}"},
                timeout=30,
            ).text
            assert 'orchestrator_runs{pipeline="training",status="SUCCESS"} 1.0' in scraped
            assert new.end() in (0, 143)
