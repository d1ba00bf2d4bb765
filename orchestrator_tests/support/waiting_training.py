"""A training that waits until it is let go, so that who follows it can be ended meanwhile; and what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import boto3
import psutil
import requests

from orchestrator import names
from orchestrator_tests.support.commands import Command

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


def waiting_project(folder: Path) -> Callable[[Path], None]:
    def edit(tree: Path) -> None:
        (tree / "MLproject").write_text(MLPROJECT)
        (tree / "train.py").write_text(WAITS.format(folder=str(folder)))

    return edit


def workers_of(command: Command) -> list[psutil.Process]:
    return [process for process in command.family() if "--multiprocessing-fork" in process.cmdline()]


def kill_all(workers: Iterable[psutil.Process]) -> None:
    for worker in workers:
        if worker.is_running():
            worker.kill()


def mlflow_runs(environment: Mapping[str, str], partition: str) -> list[dict[str, Any]]:
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


def instances(environment: Mapping[str, str]) -> list[str]:
    ec2 = boto3.client(
        "ec2",
        region_name=environment["AWS_DEFAULT_REGION"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    found = [each for group in ec2.describe_instances()["Reservations"] for each in group["Instances"]]
    return [str(instance["State"]["Name"]) for instance in found]
