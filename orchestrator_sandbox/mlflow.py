"""The sandbox's MLflow: the real tracking server, on SQLite, in a directory of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests

from orchestrator.errors import SandboxError
from orchestrator_sandbox.folders import private_folder
from orchestrator_sandbox.processes.child import ChildProcess, free_port

EXPERIMENT = "sandbox"
# `mlflow server` imports MLflow twice, one process after the other, and then makes 50-odd database
# migrations. Measured on 2 slow cores: 12 s for a new directory, 8 s for a known one; more than twice that
# when Python has to compile MLflow first, as after an installation without bytecode.
START_SECONDS = 180.0
ANSWER_SECONDS = 30.0


class MlflowServer:
    """`mlflow server` on loopback; the end of the context ends it, with everything that it started.

    Args:
        directory: holds database, artifacts and log; a later server in the same directory keeps them.
        port: where it listens; 0: any free port.
        options: further options of `mlflow server`.
    """

    def __init__(self, directory: Path, port: int = 0, *, options: Sequence[str] = ()) -> None:
        self.directory = directory.resolve()
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            SandboxError: it does not, or is closed meanwhile; the text holds the end of its log.
        """
        try:
            self._exit.enter_context(self._start()).await_http(f"{self.url}/health", START_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server; returns when no process and no port of it is left. May be called again, and at any time."""
        self._exit.close()

    def experiment(self, name: str) -> str:
        """The ID of the experiment of this name, which is created if there is none."""
        answer = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name})
        if "experiment" in answer:
            return str(answer["experiment"]["experiment_id"])
        return str(self._ask("POST", "experiments/create", json={"name": name})["experiment_id"])

    def env(self) -> dict[str, str]:
        """The settings that this server fills."""
        return {"MLFLOW_TRACKING_URI": self.url, "MLFLOW_EXPERIMENT_ID": self.experiment(EXPERIMENT)}

    def _start(self) -> ChildProcess:
        private_folder(self.directory)
        return ChildProcess(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
                *("--allowed-hosts", urlsplit(self.url).netloc, "--cors-allowed-origins", self.url),
                *("--x-frame-options", "SAMEORIGIN"),
                *("--backend-store-uri", f"sqlite:///{self.directory / 'mlflow.db'}"),
                *("--serve-artifacts", "--artifacts-destination", str(self.directory / "artifacts")),
                *self._options,
            ],
            name="the MLflow server",
            log=self.directory / "mlflow.log",
            env=_environment(),
            cwd=self.directory,
        )

    def _ask(self, method: str, endpoint: str, **arguments: Any) -> dict[str, Any]:
        url = f"{self.url}/api/2.0/mlflow/{endpoint}"
        response = requests.request(method, url, timeout=ANSWER_SECONDS, **arguments)
        if response.status_code >= 500:
            raise SandboxError(f"{url} answered {response.status_code}; see {self.directory / 'mlflow.log'}")
        answer: dict[str, Any] = response.json()
        return answer


def _environment() -> dict[str, str]:
    """Our environment without what is meant for MLflow's clients, and with what keeps the server small."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "_MLFLOW_"))}
    return {
        **ours,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # The job runner, for evaluating LLM traces, would be eight more processes, 600 MB and 25 s of CPU time.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
