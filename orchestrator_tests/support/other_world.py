"""The project among other systems, which it knows from the environment alone; for loop/test_other_systems."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import requests

from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.processes.child import ChildProcess, free_port
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.other_ec2 import OtherEc2
from orchestrator_tests.support.other_jenkins import OtherBuild, OtherJenkins
from orchestrator_tests.support.other_login import Login
from orchestrator_tests.support.other_machine import SshdMachine
from orchestrator_tests.support.waiting import until

MODEL = ("training", "trained_model")
MLFLOW_ADDRESS = "127.0.0.9"
EXPERIMENT_ID = "3"
TOKEN = "the-token-of-the-ui-of-another-world"
STEPS = 4
LAUNCH_SECONDS = 180
END_SECONDS = 180

MLPROJECT = "name: recommender\nentry_points:\n  main:\n    command: python train.py\n"

# Logs STEPS steps; behind the second one it passes the gate that the commit names, if it names one.
TRAIN = f"""
import fcntl, json, os, pathlib, time, urllib.request

def call(endpoint, **fields):
    url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + endpoint
    data = json.dumps({{"run_id": os.environ["MLFLOW_RUN_ID"], **fields}}).encode()
    urllib.request.urlopen(urllib.request.Request(url, data, {{"Content-Type": "application/json"}}), timeout=30)

gate = pathlib.Path("gate.txt").read_text().strip()
print("the training begins", flush=True)
for step in range({STEPS}):
    call("runs/log-metric", key="loss", value=1 / (1 + step), timestamp=int(time.time() * 1000), step=step)
    if step == 1 and gate:
        fcntl.flock(open(gate), fcntl.LOCK_SH)
call("runs/log-parameter", key="kind", value="other")
print("the training ends", flush=True)
"""


class OtherWorld:
    """Git, Jenkins, EC2 with OpenSSH, MLflow, and `orchestrator serve`, until it is closed."""

    def __init__(self) -> None:
        self._exits = ExitStack()
        self._gates = 0

    def __enter__(self) -> Self:
        with self._exits:
            # Below /opt, since sshd trusts no key file below a folder like /tmp, which anybody may write to.
            self.directory = Path(
                self._exits.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-tests-", dir="/opt"))
            )
            self.directory.chmod(0o755)
            mlflow = self._start_mlflow()
            self._start_git()
            self.jenkins = self._exits.enter_context(OtherJenkins(self.repository))
            login = self._exits.enter_context(Login(self.directory))
            self.ec2 = self._exits.enter_context(OtherEc2(self.directory, login))
            mlflow.await_http(f"{self._mlflow}/health", seconds=180)
            while self._ask_mlflow("experiments/create", name=os.urandom(4).hex())["experiment_id"] != EXPERIMENT_ID:
                pass
            self._exits = self._exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def start_dagster(self) -> None:
        """Start `orchestrator serve`; the sensor is on."""
        home = self.directory / "dagster"
        home.mkdir()
        port = free_port()
        env = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "DAGSTER_HOME": str(home),
            "MLFLOW_TRACKING_URI": self._mlflow,
            "MLFLOW_EXPERIMENT_ID": EXPERIMENT_ID,
            "MLPROJECT_URI": "#models/ranking",
            "MLPROJECT_ENV_MANAGER": "local",
            "ORCHESTRATOR_DEPLOYMENT": "other systems",
            "TRAIN_BRANCHES": "main,feature/*",
            "UI_TOKEN": TOKEN,
            **self.jenkins.env(),
            **self.ec2.env(),
        }
        serve = self._exits.enter_context(
            ChildProcess(
                [sys.executable, "-m", "orchestrator.cli", "serve", "--port", str(port)],
                name="orchestrator serve",
                log=self.directory / "serve.log",
                env=env,
                cwd=home,  # where no .env is
            )
        )
        url = f"http://127.0.0.1:{port}"
        serve.await_http(f"{url}/health/live", seconds=120)
        self.dagster = self._exits.enter_context(DagsterApi(url, token=TOKEN))
        assert self.dagster.location_error() is None

    # ---- builds

    def commit(self, *, gate: Gate | None = None) -> str:
        """Commit to the project; return the hash.

        Args:
            gate: what the training passes in its middle.
        """
        project = self._clone / "models" / "ranking"
        project.mkdir(parents=True, exist_ok=True)
        (project / "MLproject").write_text(MLPROJECT)
        (project / "train.py").write_text(TRAIN)
        (project / "gate.txt").write_text(f"{gate or ''}\n")
        self._git("add", ".")
        self._git("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "--allow-empty", "-qm", "train")
        return self._git("rev-parse", "HEAD")

    def gate(self) -> Gate:
        """A closed gate for a training."""
        self._gates += 1
        return self._exits.enter_context(Gate(self.directory / f"gate-{self._gates}"))

    def gated_build(self, branch: str = "main") -> tuple[str, Gate]:
        """Let a build end well whose training waits in its middle; return its partition and its gate."""
        gate = self.gate()
        build = self.jenkins.build(branch, self.commit(gate=gate))
        return partition_of(build), gate

    # ---- runs

    def launched(self, partition: str) -> str:
        """Wait until the sensor has launched the run of a build; return its ID."""
        runs = partial(self.dagster.runs, partition=partition)
        try:
            (run,) = until(runs, seconds=LAUNCH_SECONDS, every=0.5)
        except AssertionError as error:
            tick = self.dagster.failed_tick("training_jenkins_sensor")
            raise AssertionError(f"no run for {partition}; the newest tick: {tick or 'did not fail'}") from error
        return run.id

    def training(self, partition: str) -> str:
        """Wait until a gated training is at its gate; return its MLflow run's ID."""

        def waits() -> str | None:
            runs = self.mlflow_runs(partition)
            return runs[0]["info"]["run_id"] if runs and len(self.steps(runs[0])) == 2 else None

        return until(waits, seconds=LAUNCH_SECONDS, every=0.5) or ""

    def ended(self, run_id: str, *, seconds: float = END_SECONDS) -> RunSummary:
        """Wait for a run's end."""

        def over() -> RunSummary | None:
            run = self.dagster.run(run_id)
            return run if run.over else None

        run = until(over, seconds=seconds, every=0.5)
        assert run is not None
        return run

    def hears(self, run_id: str, text: str) -> None:
        """Wait until a line of a run's log holds a text."""

        def is_logged() -> bool:
            return any(text in message for message in self.messages(run_id))

        until(lambda: is_logged() or self.dagster.run(run_id).over, seconds=LAUNCH_SECONDS, every=0.5)
        assert is_logged(), self.dagster.failure(run_id)

    def messages(self, run_id: str) -> list[str]:
        """The lines of a run's log."""
        query = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
            ... on MessageEvent { message } } } } }"""
        answer = requests.post(
            f"{self.dagster.url}/graphql",
            json={"query": query, "variables": {"id": run_id}},
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=30,
        )
        return [event["message"] for event in answer.json()["data"]["logsForRun"]["events"]]

    def worker(self, run_id: str) -> psutil.Process:
        """The process of a run, as its log tells."""
        (message,) = [message for message in self.messages(run_id) if "Started process for run" in message]
        return psutil.Process(int(message.partition("(pid: ")[2].partition(")")[0]))

    # ---- what the other systems hold

    def machine(self, partition: str) -> SshdMachine:
        """The one machine that runs for a build."""
        (machine,) = [
            self.ec2.machines[instance["InstanceId"]]
            for instance in self.ec2.instances(partition)
            if instance["InstanceId"] in self.ec2.machines
        ]
        return machine

    def instance_states(self, partition: str) -> list[str]:
        """The states of all instances that a build ever had."""
        return [instance["State"]["Name"] for instance in self.ec2.instances(partition)]

    def mlflow_runs(self, partition: str) -> list[dict[str, Any]]:
        """All MLflow runs of a build."""
        filter_ = f"tags.`orchestrator.partition` = '{partition}'"
        answer = self._ask_mlflow("runs/search", experiment_ids=[EXPERIMENT_ID], filter=filter_)
        return list(answer.get("runs", []))

    def steps(self, run: dict[str, Any]) -> list[int]:
        """The training steps that an MLflow run holds, in the order of their logging."""
        answer = requests.get(
            f"{self._mlflow}/api/2.0/mlflow/metrics/get-history",
            params={"run_id": run["info"]["run_id"], "metric_key": "loss"},
            timeout=30,
        )
        return [int(point.get("step", 0)) for point in answer.json().get("metrics", [])]

    def _ask_mlflow(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        answer = requests.post(f"{self._mlflow}/api/2.0/mlflow/{endpoint}", json=fields, timeout=30)
        answer.raise_for_status()
        fields_: dict[str, Any] = answer.json()
        return fields_

    def _start_mlflow(self) -> ChildProcess:
        folder = self.directory / "mlflow"
        folder.mkdir()
        port = free_port(MLFLOW_ADDRESS)
        self._mlflow = f"http://{MLFLOW_ADDRESS}:{port}"
        return self._exits.enter_context(
            ChildProcess(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--host", MLFLOW_ADDRESS, "--port", str(port)),
                    *("--allowed-hosts", f"{MLFLOW_ADDRESS}:{port}"),
                    *("--backend-store-uri", f"sqlite:///{folder}/runs.db"),
                    *("--artifacts-destination", str(folder / "artifacts")),
                ],
                name="MLflow",
                log=folder / "log",
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        )

    def _start_git(self) -> None:
        base = self.directory / "git"
        self._clone = base / "recommender"
        self._clone.mkdir(parents=True)
        self._git("init", "-q", "--initial-branch=main")
        port = free_port()
        self.repository = f"git://127.0.0.1:{port}/recommender"
        daemon = ChildProcess(
            [
                *("git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}"),
                *(f"--base-path={base}", str(base)),
            ],
            name="git daemon",
            log=self.directory / "git.log",
        )
        self._exits.enter_context(daemon).await_port(port)

    def _git(self, *arguments: str) -> str:
        git = subprocess.run(["git", *arguments], cwd=self._clone, check=True, capture_output=True, text=True)
        return git.stdout.strip()


def partition_of(build: OtherBuild) -> str:
    """The partition key of a build of a branch."""
    return f"{build.branch}#{build.number}"
