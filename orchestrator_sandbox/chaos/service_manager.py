"""Dagster's processes in a campaign: found, killed, and restarted whenever they end, as systemd would.

Run as `python -m orchestrator_sandbox.chaos.service_manager PORT` it is the service manager. As with systemd's
`KillMode=process`, a run worker outlives the service that started it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from orchestrator.operate.home import project_file
from orchestrator_sandbox.processes.child import ChildProcess

RESTART_SECONDS = 1.0
WEBSERVER = ("-m", "dagster_webserver")
DAEMON = (str(Path(sys.executable).with_name("dagster-daemon")),)
CODE_SERVER = ("-m", "dagster", "api", "grpc")


class DagsterProcesses:
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
        sys.stderr.write(f"chaos: {command[1]} ended with exit status {ended.returncode}; restarting it\n")
        threading.Event().wait(RESTART_SECONDS)


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
