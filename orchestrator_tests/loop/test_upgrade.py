"""One `serve` is stopped in mid-training, and another one started: nothing is lost, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import requests

from orchestrator import names
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.demo.outcome import OutcomeReader
from orchestrator_sandbox.stack import TRAINED_MODEL, Stack
from orchestrator_tests.support.commands import Command, running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

MLPROJECT = """name: light
entry_points:
  main:
    command: "python train.py"
"""

WAITS = """
import json, os, pathlib, time, urllib.request
folder = pathlib.Path({folder!r})
with (folder / "begun").open("a") as begun:
    begun.write("once\\n")
while not (folder / "go").exists():
    time.sleep(0.1)
point = {{"run_id": os.environ["MLFLOW_RUN_ID"], "key": "accuracy", "value": 0.5, "timestamp": int(time.time() * 1000)}}
url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
urllib.request.urlopen(urllib.request.Request(url, json.dumps(point).encode(), {{"Content-Type": "application/json"}}))
"""


def project(folder: Path) -> Callable[[Path], None]:
    def edit(tree: Path) -> None:
        (tree / "MLproject").write_text(MLPROJECT)
        (tree / "train.py").write_text(WAITS.format(folder=str(folder)))

    return edit


def workers_of(command: Command) -> list[psutil.Process]:
    return [process for process in command.family() if "--multiprocessing-fork" in process.cmdline()]


def kill_all(workers: list[psutil.Process]) -> None:
    for worker in workers:
        if worker.is_running():
            worker.kill()


def mlflow_runs(environment: dict[str, str], partition: str) -> list[dict[str, Any]]:
    answer = requests.post(
        f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/search",
        json={
            "experiment_ids": [environment["MLFLOW_EXPERIMENT_ID"]],
            "filter": f"tags.`{names.MlflowTag.PARTITION}` = '{partition}'",
        },
        timeout=60,
    ).json()
    runs: list[dict[str, Any]] = answer.get("runs", [])
    return runs


def instances(environment: dict[str, str]) -> list[str]:
    ec2 = boto3.client(
        "ec2",
        region_name=environment["AWS_DEFAULT_REGION"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    found = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
    return [str(instance["State"]["Name"]) for instance in found]


def test_a_new_serve_takes_over_what_the_old_one_has_begun(tmp_path: Path) -> None:
    training = tmp_path / "training"
    training.mkdir()
    with Stack(tmp_path / "stack") as stack, ExitStack() as cleanup:
        stack.git.commit("Wait for the upgrade", project(training))
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
