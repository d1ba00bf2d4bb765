"""Dagster's webserver and daemon on the project's own workspace.yaml and dagster.yaml."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import requests
import tenacity

from orchestrator import names
from orchestrator.errors import DagsterDown, SettingsError
from orchestrator.operate.signals import undisturbed
from orchestrator.settings.groups import QueueSettings
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import lookup

START_SECONDS = 120.0
STOP_SECONDS = 10.0

PACKAGE = Path(__file__).resolve().parents[1]


def project_file(name: str) -> Path:
    """A file of the project's root: of the folder we are in, else of our checkout, else the wheel's copy of ours.

    Raises:
        SettingsError: none of them holds it.
    """
    here = Path.cwd()
    for folder in (here, PACKAGE.parent, PACKAGE):
        if (folder / name).is_file():
            return folder / name
    raise SettingsError(f"there is no {name} in {here}; go to the project's folder first")


def prepare_home(home: Path) -> Path:
    """Make a DAGSTER_HOME whose configuration is the project's dagster.yaml, unless it has its own.

    Args:
        home: the folder, which need not exist.

    Returns:
        The dagster.yaml that rules.
    """
    home.mkdir(parents=True, exist_ok=True)
    config = home / "dagster.yaml"
    if not config.exists():
        config.unlink(missing_ok=True)  # a link to a project that has moved
        config.symlink_to(project_file("dagster.yaml"))
    return config.resolve()


def dagster_home() -> Path:
    """DAGSTER_HOME of the environment or `.env`, else the folder .dagster right here.

    Raises:
        SettingsError: `.env` cannot be read.
    """
    return Path(lookup("DAGSTER_HOME") or ".dagster").expanduser().absolute()


class Services:
    """The webserver and the daemon, as children in sessions of their own.

    Closing ends both, and with them the code servers that they have started. A training that runs goes on
    to its end in its own process and is recorded there, so that a restart loses nothing.

    Args:
        home: the DAGSTER_HOME.
        host: address that the webserver listens on.
        port: its port.

    Raises:
        DagsterDown: entered, and one of them ends, or the UI does not answer in time.
    """

    def __init__(self, *, home: Path, host: str, port: int) -> None:
        self._home = home
        self._host = host
        self._port = port
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.left_running: list[int] = []
        address = f"[{host}]" if ":" in host else host
        self.url = f"http://{address}:{port}"

    def __enter__(self) -> Self:
        workspace = str(project_file("workspace.yaml"))
        common = ["--workspace", workspace, "--code-server-log-level", "warning"]
        is_new = not (self._home / "schedules").exists()
        try:
            listen = ["--host", self._host, "--port", str(self._port)]
            self._start("dagster-webserver", [*listen, *common])
            if is_new:
                self._await_ui()  # two processes that make the same SQLite tables end each other
            self._start("dagster-daemon", ["run", *common])
            self._await_ui()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_ui(self) -> None:
        def answers() -> bool:
            if not self._ended.empty():
                self.await_end()
            try:
                return requests.get(f"{self.local_url()}/server_info", timeout=5).ok
            except requests.RequestException:
                return False

        waiting = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda ready: not ready),
            stop=tenacity.stop_after_delay(START_SECONDS),
            wait=tenacity.wait_fixed(0.1),
        )
        try:
            waiting(answers)
        except tenacity.RetryError as error:
            raise DagsterDown(
                f"Dagster's UI did not answer on {self.url} within {START_SECONDS:g} s; its output above says why"
            ) from error

    def await_end(self) -> None:
        """Block until a child ends, which none should.

        Raises:
            DagsterDown: always, in the end.
        """
        name = self._ended.get()
        raise DagsterDown(f"{name} ended with exit status {self._children[name].returncode}; its output above says why")

    def close(self) -> None:
        """End both, and their code servers. May be called again."""
        with undisturbed():
            family = [process for child in self._children.values() for process in _descendants(child.pid)]
            workers = [process for process in family if _is_run_worker(process)]
            busy = {relative for worker in workers for relative in _code_server_of(worker)}
            for child in self._children.values():
                child.terminate()
            for child in self._children.values():
                try:
                    child.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            self._children.clear()
            _await_end([process for process in family if process not in busy], seconds=STOP_SECONDS)
            self.left_running = [worker.pid for worker in workers if _runs(worker)]

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        child = subprocess.Popen(
            [script(name), *arguments],
            env={**os.environ, "DAGSTER_HOME": str(self._home)},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,  # a Ctrl-C in the terminal must reach us alone, not the trainings
        )
        self._children[name] = child
        threading.Thread(target=self._watch, args=(name, child), daemon=True).start()

    def _watch(self, name: str, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._ended.put(name)

    def local_url(self) -> str:
        """Where we reach it ourselves, also when it listens on every address."""
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - recognised, not bound
        return f"http://{anywhere[self._host]}:{self._port}" if self._host in anywhere else self.url


def serve(*, host: str, port: int, say: Callable[[str], None]) -> None:
    """Run the webserver and the daemon until a signal, or until one of them ends.

    Args:
        host: address to listen on; the UI has no login.
        port: port to listen on.
        say: takes each line for the user.

    Raises:
        DagsterDown: a child did not start, or ended.
        SettingsError: not in a project's folder, or the port is taken.
    """
    home = dagster_home()
    config = prepare_home(home)
    say(f"DAGSTER_HOME is {home}, configured by {config}")
    if not is_loopback(host):
        say(f"WARNING: the UI has no login; whoever reaches {host}:{port} can run and cancel trainings")
    limit = max_instances()
    require_free(host, port)
    if limit:
        limit_instances(home, limit)
    services = Services(home=home, host=host, port=port)
    try:
        with services:
            say(f"Dagster runs on {services.url}; Ctrl-C stops it")
            services.await_end()
    finally:
        if services.left_running:
            pids = ", ".join(map(str, services.left_running))
            say(f"Dagster has stopped; trainings that ran go on to their end by themselves (processes {pids})")


def max_instances() -> int | None:
    """MAX_INSTANCES; None when it is not set.

    Raises:
        SettingsError: it is not a whole number above 0.
    """
    return SettingsSource().read(QueueSettings).max_instances


def limit_instances(home: Path, limit: int) -> None:
    """Set the limit of Dagster's pool of runs that hold an instance.

    Args:
        home: the DAGSTER_HOME.
        limit: most instances at once.

    Raises:
        SettingsError: its dagster.yaml is wrong, or its storage keeps no limits.
    """
    import dagster as dg  # only here, because it takes a second and 40 MB that serving does without

    from orchestrator import dagster_instance

    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            dagster_instance.set_pool_limit(instance, pool=names.INSTANCE_POOL, limit=limit)
    except dg.DagsterError as error:
        raise SettingsError(f"cannot use {home / 'dagster.yaml'}: {' '.join(str(error).split())}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def script(name: str) -> str:
    """A program that a package has installed beside our own Python.

    Raises:
        DagsterDown: there is none of that name.
    """
    folders = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"))
    program = shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        raise DagsterDown(f"there is no program {name} in {' or '.join(dict.fromkeys(folders))}; install {name} there")
    return program


def require_free(host: str, port: int) -> None:
    """Check that we can listen there.

    Raises:
        SettingsError: we cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on port {port} of {host}: {error.strerror}; choose another with --port or --host"
        ) from error


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_run_worker(process: psutil.Process) -> bool:
    """Whether it is a run's own process, which a code server has forked off with `multiprocessing`."""
    try:
        return "--multiprocessing-fork" in process.cmdline()
    except psutil.Error:
        return False


def _code_server_of(worker: psutil.Process) -> Sequence[psutil.Process]:
    """The code server that waits for this run's end, and all that it has started."""
    try:
        server = worker.parent()
        return [server, *server.children(recursive=True)] if server else []
    except psutil.NoSuchProcess:
        return []


def _await_end(processes: Sequence[psutil.Process], *, seconds: float) -> None:
    """Wait for processes that are not our children, so long at most."""
    waiting = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda running: bool(running)),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(0.1),
        retry_error_callback=lambda state: None,
    )
    waiting(lambda: [process for process in processes if _runs(process)])


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended; one whose new parent does not reap it stays in the table for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
