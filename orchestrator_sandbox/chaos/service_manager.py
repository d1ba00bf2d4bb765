"""Dagster under fire: its services restarted whenever they end, as systemd would, and its books read.

Run as ``python -m orchestrator_sandbox.chaos.service_manager PORT`` it is the service manager. As with systemd's
``KillMode=process``, a run worker outlives the service that started it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from orchestrator import names
from orchestrator.operate.serve import project_file
from orchestrator_sandbox.dagster_api import DagsterApi
from orchestrator_sandbox.dagster_runs import OVER
from orchestrator_sandbox.processes.child import ChildProcess

RESTART_SECONDS = 1.0
DECISION_SECONDS = 150.0
"""How long it may take until a failed run is retried: Dagster decides within seconds, and may give its decision up;
then the janitor, which looks every minute, makes it decide once more."""
WEBSERVER = ("-m", "dagster_webserver")
DAEMON = ("-m", "dagster._daemon")
CODE_SERVER = ("-m", "dagster", "api", "grpc")

LIVE = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")

_ATTEMPT = "runId status endTime tags { key value }"
_STEPS = "stepStats { stepKey status }"


@dataclass(frozen=True)
class Attempt:
    """One Dagster run for a build.

    Attributes:
        step: the step under way.
        trained: the MLflow run whose process it saw exit 0.
        retry_due: Dagster is going to launch another attempt because of it.
    """

    id: str
    partition: str
    status: str
    step: str | None
    trained: str | None
    retry_due: bool

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in OVER

    @property
    def live(self) -> bool:
        """Whether it, or the attempt that is to follow it, may still do something."""
        return not self.over or self.retry_due


class Books(DagsterApi):
    """What Dagster says of its runs."""

    def attempts(self, partition: str) -> list[Attempt]:
        """The attempts at one build, the oldest first."""
        return self._attempts({"tags": [{"key": "dagster/partition", "value": partition}]})

    def under_way(self) -> list[Attempt]:
        """All attempts that have not ended, with the steps that they are in."""
        return self._attempts({"statuses": list(LIVE)}, fields=_ATTEMPT + _STEPS)

    def retries_due(self) -> list[Attempt]:
        """All failed attempts, of the newest hundred, that Dagster is going to repeat."""
        return [attempt for attempt in self._attempts({"statuses": ["FAILURE"]}) if attempt.retry_due]

    def _attempts(self, runs: Mapping[str, object], *, fields: str = _ATTEMPT) -> list[Attempt]:
        answer = self._ask(
            "query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 100) "
            f"{{ __typename ... on Runs {{ results {{ {fields} }} }} ... on Error {{ message }} }} }}",
            {"filter": dict(runs)},
        )
        return [_attempt(run) for run in reversed(answer["results"])]

    def worker(self, run_id: str) -> int | None:
        """The process that executes a run; None before it was started."""
        answer = self._ask(
            """query($id: ID!) { logsForRun(runId: $id) { __typename ... on Error { message }
                 ... on EventConnection { events { __typename ... on EngineEvent { message } } } } }""",
            {"id": run_id},
        )
        for event in answer["events"]:
            if found := re.match(r"Started process for run \(pid: (\d+)\)", event.get("message") or ""):
                return int(found[1])
        return None


class Processes:
    """The processes of Dagster, by what they are.

    Args:
        services: the service manager.
    """

    def __init__(self, services: ChildProcess) -> None:
        self._manager = services.pid
        guardian = psutil.Process(services.pid).parent()
        assert guardian is not None  # noqa: S101 - for the type checker: it waits for the manager
        self._guardian = guardian  # whatever loses its parent becomes its child

    def daemon(self) -> list[psutil.Process]:
        """The daemon."""
        return self._named(DAEMON)

    def code_servers(self) -> list[psutil.Process]:
        """The code servers that execute runs: the daemon's. The webserver's own only describes the definitions."""
        return [process for process in self._named(CODE_SERVER) if not self._is_webservers(process)]

    def everything(self) -> list[psutil.Process]:
        """All services, code servers and run workers; not the service manager."""
        return [process for process in self._guardian.children(recursive=True) if process.pid != self._manager]

    def worker(self, pid: int) -> psutil.Process | None:
        """The run worker of this process ID, while it lives."""
        return next((process for process in self.everything() if process.pid == pid and _lives(process)), None)

    def _named(self, words: Sequence[str]) -> list[psutil.Process]:
        return [process for process in self.everything() if tuple(_command(process)[1 : len(words) + 1]) == words]

    def _is_webservers(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            return parent is not None and tuple(_command(parent)[1 : len(WEBSERVER) + 1]) == WEBSERVER
        return False


def kill(processes: Sequence[psutil.Process]) -> list[int]:
    """SIGKILL each, at once; return those that it met alive."""
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process.pid)
    return killed


def manage(port: int) -> None:
    """Keep the webserver and the daemon running until we are killed."""
    common = ("--workspace", str(project_file("workspace.yaml")), "--code-server-log-level", "warning")
    commands = (
        (*WEBSERVER, "--host", "127.0.0.1", "--port", str(port), *common),
        (*DAEMON, "run", *common),
    )
    for command in commands:
        threading.Thread(target=_keep_running, args=(command,)).start()


def _keep_running(command: Sequence[str]) -> None:
    while True:
        ended = subprocess.run([sys.executable, *command], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        sys.stderr.write(f"chaos: {command[1]} ended with exit status {ended.returncode}; it is started again\n")
        threading.Event().wait(RESTART_SECONDS)


def _attempt(run: dict[str, Any]) -> Attempt:
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    steps = (step for step in run.get("stepStats", ()) if step["status"] in (None, "IN_PROGRESS"))
    step_names = (str(step["stepKey"]).rpartition(".")[2] for step in steps)
    undecided = time.time() - (run["endTime"] or 0) < DECISION_SECONDS
    announced = tags.get("dagster/will_retry") == "true"
    settled = "dagster/auto_retry_run_id" in tags or tags.get("dagster/failure_reason") == "STEP_FAILURE"
    return Attempt(
        id=run["runId"],
        partition=tags.get("dagster/partition", ""),
        status=run["status"],
        step=None if run["status"] in OVER else next(step_names, None),
        trained=tags.get(names.RunTag.TRAINED),
        retry_due=run["status"] == "FAILURE" and not settled and (announced or undecided),
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    manage(int(sys.argv[1]))
