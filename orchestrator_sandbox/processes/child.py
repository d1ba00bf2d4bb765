"""Programs that the sandbox consists of: started, awaited, and surely ended."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import requests
import tenacity

from orchestrator.errors import SandboxError
from orchestrator_sandbox.folders import append_only
from orchestrator_sandbox.processes import guardian

LAST_LINES = 15
UNPRIVILEGED_PORTS = range(10_000, 32_768)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that nothing listens on, and that no connection's own end can be given meanwhile.

    The kernel takes both the ports of outgoing connections and those of `bind(…, 0)` from its ephemeral range
    (32768 to 60999, `net.ipv4.ip_local_port_range`): of those, one that is free now may be taken before the
    program that it is meant for binds it.
    """
    while True:
        port = random.choice(UNPRIVILEGED_PORTS)  # noqa: S311 - two processes must differ, nobody guesses
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((host, port))
            return port


def kept_port(file: Path, host: str = "127.0.0.1") -> int:
    """A free port, the same one at each start as long as it stays free: addresses are recorded by others.

    Args:
        file: remembers the port.
        host: the address that it is wanted on.
    """
    if file.exists():
        port = int(file.read_text())
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return port
    port = free_port(host)
    file.write_text(str(port))
    return port


class ChildProcess:
    """A program in a session of its own, ended with all its descendants when this object is closed.

    They are ended too when this process is killed, and when the program itself exits and leaves
    descendants behind: see `guardian.py`, which runs between us and the program.

    Args:
        argv: the program and its arguments; never a secret.
        name: what it is called in messages, such as "the MLflow server".
        log: file that its output is appended to; its owner's alone when it is new.
        env: its whole environment; default: that of this process.
        cwd: its working directory; default: that of this process.
        grace_seconds: what its processes get to end by themselves before they are killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        grace_seconds: float = 10,
    ) -> None:
        self.name = name
        self.log = log
        self._grace_seconds = grace_seconds
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", opener=append_only) as output:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", guardian.__file__, str(grace_seconds), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def pid(self) -> int:
        """The program's own process ID.

        Raises:
            SandboxError: it could not be started.
        """
        assert self._guardian.stdout is not None  # noqa: S101 - for the type checker: it is a PIPE
        line = self._guardian.stdout.readline()
        if not line:
            raise SandboxError(f"{self.name} did not start; its log {self.log} ends with:\n{self.tail()}")
        return int(line)

    @property
    def returncode(self) -> int | None:
        """Exit status once it has ended (128 + n when signal n ended it); None before."""
        return self._guardian.poll()

    def alive(self) -> bool:
        """Whether the program runs."""
        return self.returncode is None

    def wait(self, seconds: float | None = None) -> int:
        """Wait for the program's end, and return its exit status.

        Args:
            seconds: how long at most; default: no limit.

        Raises:
            SandboxError: it still runs after that time.
        """
        try:
            return self._guardian.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"{self.name} has not ended after {seconds:g} s; its log is {self.log}") from error

    def await_http(self, url: str, seconds: float = 60) -> None:
        """Wait until `url` gives any HTTP answer below 500.

        Args:
            url: a page of the program's server.
            seconds: how long to wait at most.

        Raises:
            SandboxError: the program ended, or gave no such answer in time.
        """

        def answers() -> bool:
            try:
                return requests.get(url, timeout=5, allow_redirects=False).status_code < 500
            except requests.RequestException:
                return False

        self._await(answers, action=f"answer on {url}", seconds=seconds)

    def await_port(self, port: int, host: str = "127.0.0.1", *, seconds: float = 60) -> None:
        """Wait until the program's TCP port accepts a connection.

        Args:
            port: the port.
            host: the address it is on.
            seconds: how long to wait at most.

        Raises:
            SandboxError: the program ended, or did not listen in time.
        """

        def listens() -> bool:
            try:
                socket.create_connection((host, port), timeout=5).close()
            except OSError:
                return False
            return True

        self._await(listens, action=f"listen on {host}:{port}", seconds=seconds)

    def tail(self, lines: int = LAST_LINES) -> str:
        """The last lines of the program's log."""
        text = self.log.read_bytes()[-200 * lines :].decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End the program and all its descendants; returns when they are gone. May be called again."""
        for pipe in (self._guardian.stdin, self._guardian.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._guardian.wait(2 * self._grace_seconds + 5)
        except subprocess.TimeoutExpired:
            self._kill_tree()

    def _kill_tree(self) -> None:
        """The last resort: a descendant that does not even die of SIGKILL keeps the guardian waiting."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._guardian.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._guardian.kill()
        self._guardian.wait()

    def _await(self, condition: Callable[[], bool], *, action: str, seconds: float) -> None:
        def holds() -> bool:
            if not self.alive():
                raise SandboxError(
                    f"{self.name} ended with exit status {self.returncode} before it could {action}; "
                    f"its log {self.log} ends with:\n{self.tail()}"
                )
            return condition()

        try:
            tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda answer: not answer),
                stop=tenacity.stop_after_delay(seconds),
                wait=tenacity.wait_fixed(0.05),
            )(holds)
        except tenacity.RetryError as error:
            raise SandboxError(
                f"{self.name} did not {action} within {seconds:g} s; its log {self.log} ends with:\n{self.tail()}"
            ) from error
