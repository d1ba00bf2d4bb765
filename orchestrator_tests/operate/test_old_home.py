"""A DAGSTER_HOME that an earlier version has made is opened, and goes on.

`data/home-f1d0766.json.gz` is one of commit f1d0766: file → its dump. It has watched a Jenkins job, launched its newest
green build, 3, and seen that fail, because settings were missing.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.processes.child import free_port
from orchestrator_sandbox.stack import SENSOR, TRAINED_MODEL
from orchestrator_tests.support.commands import running
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.ui import TOKEN, Ui
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

DUMP = Path(__file__).parent / "data" / "home-f1d0766.json.gz"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    for name, text in json.loads(gzip.decompress(DUMP.read_bytes())).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(home / name)) as database:
            database.executescript(text)
    return home


def test_a_home_of_f1d0766_is_opened_and_its_sensor_goes_on(home: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "DAGSTER_HOME": str(home),
        "UI_TOKEN": TOKEN, "ORCHESTRATOR_DEPLOYMENT": "old", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": NOWHERE, "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "MLFLOW_TRACKING_URI": NOWHERE, "MLFLOW_EXPERIMENT_ID": "0",
        "JENKINS_URL": NOWHERE, "JENKINS_USER": "nobody", "JENKINS_TOKEN": "unused", "JENKINS_JOB_NAME": "digits",
    }  # fmt: skip
    with running("serve", "--port", str(port), cwd=tmp_path, environment=environment) as command:
        command.await_output("Dagster runs on")
        ui = Ui(port, home, command)
        until(lambda: ui.send("GET", "/health/ready").status == 200, seconds=150, every=1)
        with DagsterApi(ui.origin, token=TOKEN) as dagster:
            assert dagster.location_error() is None
            assert dagster.partitions(TRAINED_MODEL) == ["3"]
            (run,) = dagster.runs()
            assert (run.partition, run.status) == ("3", "FAILURE")
            assert "AMI_ID is not set" in (dagster.failure(run.id) or "")
            # Its cursor is read, before Jenkins is asked.
            fault = until(lambda: dagster.failed_tick(SENSOR), seconds=120, every=1)
            assert fault is not None
            assert "Connection refused" in fault
            assert "cursor" not in fault
            assert len(dagster.runs()) == 1
        assert command.end() in (0, 143)
