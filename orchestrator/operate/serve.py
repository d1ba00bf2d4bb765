"""Dagster's webserver and daemon on the project's own workspace.yaml and dagster.yaml."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import requests
import tenacity
from urllib3.exceptions import InsecureRequestWarning

from orchestrator import log_format, names
from orchestrator.errors import DagsterDown, SettingsError
from orchestrator.log_lines import LinePipes
from orchestrator.operate.daemon import AS_JSON
from orchestrator.operate.home import dagster_home, keep_private, prepare_home, private_files, project_file
from orchestrator.operate.signals import undisturbed
from orchestrator.operate.space.rules import require_space_rules
from orchestrator.operate.systemd import notify
from orchestrator.operate.web.door import Door
from orchestrator.settings.dagster_yaml import require_effect
from orchestrator.settings.groups import InstallationSettings, LauncherSettings, QueueSettings, UiSettings, env_name
from orchestrator.settings.source import SettingsSource
from orchestrator.settings.variables import require_private_env_file
from orchestrator.storage.migration import require_current

WEBSERVER = ("-m", "orchestrator.operate.web")
"""What our Python runs as the webserver."""

DAEMON = ("-m", "orchestrator.operate.daemon")
"""What it runs as the daemon: Dagster's, as soon as no other one works on the same database."""

SECRETS_OF_THE_UI = (
    env_name(UiSettings.model_fields["token"]),
    env_name(UiSettings.model_fields["metrics_token"]),
    env_name(UiSettings.model_fields["oidc_client_secret"]),
    "OAUTH_CLIENT_SECRET",
)
START_SECONDS = 120.0
STOP_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Services:
    """The webserver and the daemon, as children in sessions of their own.

    Closing ends both, and with them the code servers that they have started. A training that runs goes on
    to its end in its own process and is recorded there, so that a restart loses nothing.

    Args:
        home: the DAGSTER_HOME.
        door: where the webserver listens, and whom it lets in.
        as_json: have all that they and their trainings write written as JSON.

    Raises:
        DagsterDown: entered, and one of them ends, or the UI does not answer in time.
    """

    def __init__(self, *, home: Path, door: Door, as_json: bool = False) -> None:
        self._home = home
        self._door = door
        self._as_json = as_json
        self._pipes: LinePipes | None = None
        self._streams: tuple[int, ...] = ()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.left_running: list[int] = []

    def __enter__(self) -> Self:
        workspace = str(project_file("workspace.yaml"))
        is_new = not (self._home / "schedules").exists()
        try:
            if self._as_json:
                self._pipes = LinePipes()
                self._streams = self._pipes.pair()
            self._start("dagster-webserver", [sys.executable, *WEBSERVER, workspace], tell=self._door.to_json())
            if is_new:
                self._await_ui()  # two processes that make the same SQLite tables end each other
            options = AS_JSON if self._as_json else ()
            self._start("dagster-daemon", [sys.executable, *DAEMON, workspace, *options], ends_with_us=True)
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
        session = requests.Session()
        session.trust_env = False  # a proxy has nothing to do with ourselves
        session.verify = False  # the certificate is for the name that others know us by

        def answers() -> bool:
            if not self._ended.empty():
                self.await_end()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", InsecureRequestWarning)
                    return session.get(f"{self._door.local_url}/health/live", timeout=5).ok
            except requests.RequestException:
                return False

        waiting = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda ready: not ready),
            stop=tenacity.stop_after_delay(START_SECONDS),
            wait=tenacity.wait_fixed(0.1),
        )
        try:
            with session:
                waiting(answers)
        except tenacity.RetryError as error:
            raise DagsterDown(
                f"Dagster's UI did not answer on {self._door.url} within {START_SECONDS:g} s; its output above says why"
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
            while self._streams:  # what else writes there goes on to, until it ends
                os.close(self._streams[-1])
                self._streams = self._streams[:-1]
            _await_end([process for process in family if process not in busy], seconds=STOP_SECONDS)
            self.left_running = [worker.pid for worker in workers if _runs(worker)]
            if self._pipes:
                self._pipes.close(None if self.left_running else STOP_SECONDS)
                self._pipes = None

    def _start(self, name: str, command: Sequence[str], *, tell: str = "", ends_with_us: bool = False) -> None:
        """Start a child.

        Args:
            name: what our messages call it.
            command: its program and arguments, which other users of the machine can read.
            tell: what it finds on its standard input.
            ends_with_us: its standard input stays open for as long as we live, so that it knows when we do not.
        """
        # What starts trainings has no use for them.
        environment = {variable: text for variable, text in os.environ.items() if variable not in SECRETS_OF_THE_UI}
        child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.operate.tethered", str(os.getpid()), *command],
            env={**environment, "DAGSTER_HOME": str(self._home)},
            stdin=subprocess.PIPE,
            stdout=self._streams[0] if self._streams else sys.stderr,
            stderr=self._streams[1] if self._streams else None,
            start_new_session=True,  # a Ctrl-C in the terminal must reach us alone, not the trainings
        )
        self._children[name] = child
        threading.Thread(target=self._watch, args=(name, child), daemon=True).start()
        if child.stdin and not ends_with_us:
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:  # it has ended, and is awaited as such
                pipe.write(tell.encode())

    def _watch(self, name: str, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self._ended.put(name)


def serve(
    *, host: str, port: int, say: Callable[[str], None], certificate: Path | None = None, key: Path | None = None
) -> None:
    """Run the webserver and the daemon until a signal, or until one of them ends.

    Args:
        host: address to listen on; others than loopback need a login, and TLS or UI_INSECURE.
        port: port to listen on.
        say: takes each line for the user.
        certificate: PEM file for TLS.
        key: its private key.

    Raises:
        DagsterDown: a child did not start, or ended.
        SettingsError: not in a project's folder, the port is taken, a setting is wrong, or others may read `.env`.
    """
    require_private_env_file()
    as_json = SettingsSource().read(InstallationSettings).log_format == "json"
    if as_json:
        log_format.use_json()
        say = _log.info
    require_space_rules()
    door = Door.read(host=host, port=port, certificate=certificate, key=key)
    limit = max_instances()
    require_launcher()
    require_free(host, port)
    home = dagster_home()
    with private_files():
        config = prepare_home(home)
        keep_private(home)
        say(f"DAGSTER_HOME is {home}, configured by {config}")
        require_effect(home)
        require_current(home)
        if limit:
            limit_instances(home, limit)
        services = Services(home=home, door=door, as_json=as_json)
        try:
            with services:
                say(f"Dagster runs on {door.url if as_json else door.url_to_open}")
                say(_about(door, is_logged=as_json))
                notify("READY=1")
                services.await_end()
        finally:
            notify("STOPPING=1")
            if services.left_running:
                pids = ", ".join(map(str, services.left_running))
                say(f"Dagster has stopped; trainings that ran go on to their end by themselves (processes {pids})")


def _about(door: Door, *, is_logged: bool) -> str:
    if not door.asks_for_token:
        return "It asks for no token (UI_LOGIN=off): every user of this machine can run trainings. Ctrl-C stops it"
    if door.token is None:
        return "It asks for a login. Ctrl-C stops it"
    if door.token_is_given:
        return "It asks for UI_TOKEN, or another login. Ctrl-C stops it"
    if is_logged:  # a log is kept, and read by others
        return "Nobody can log in: set UI_TOKEN, or add a user (`orchestrator user add NAME --role admin`)"
    return "The address holds the token that lets you in, until the next start. Ctrl-C stops it"


def max_instances() -> int | None:
    """MAX_INSTANCES; None when it is not set.

    Raises:
        SettingsError: it is not a whole number above 0.
    """
    return SettingsSource().read(QueueSettings).max_instances


def require_launcher() -> None:
    """Check that runs can be launched as RUN_LAUNCHER says.

    Raises:
        SettingsError: a setting is wrong, or a package is missing.
    """
    settings = SettingsSource().read(LauncherSettings)
    if settings.chosen != "local":
        from orchestrator.launchers.chosen import chosen  # only here, because it takes seconds

        chosen(settings)


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
