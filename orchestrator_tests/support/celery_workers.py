"""A real Redis, and workers on it; for tests of the launcher and of the loop on Celery."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis

from orchestrator_sandbox.processes.child import ChildProcess, free_port
from orchestrator_tests.support.waiting import until

PASSWORD = "geheim-im-broker"


class RedisServer:
    """Debian's Redis, in memory, with a password. It can be taken away and brought back, empty.

    Args:
        directory: holds its log and configuration.
        certificate: it speaks TLS, with this certificate and key.
    """

    def __init__(self, directory: Path, *, certificate: tuple[Path, Path] | None = None) -> None:
        self._directory = directory
        self._certificate = certificate
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"redis{'s' if certificate else ''}://:{PASSWORD}@localhost:{self.port}/0"
        self._child: ChildProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        config = self._directory / "redis.conf"
        port = f"port {self.port}"
        if self._certificate:
            cert, key = self._certificate
            port = f"port 0\ntls-port {self.port}\ntls-auth-clients no\ntls-cert-file {cert}\ntls-key-file {key}"
            port += f"\ntls-ca-cert-file {cert}"
        config.write_text(f'{port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsave ""\ndir {self._directory}\n')
        self._child = ChildProcess(
            ["redis-server", str(config)], name="Redis", log=self._directory / "redis.log", grace_seconds=5
        )
        self._child.await_port(self.port)

    def stop(self) -> None:
        if self._child:
            self._child.close()
            self._child = None

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def forget(self) -> None:
        """Lose all data, as a Redis without persistence does when it is started anew."""
        with self.client() as client:
            client.flushall()


def await_ready(worker: ChildProcess, *, ready: int = 1) -> None:
    """Wait until the worker's log says so many times that it takes runs."""

    def is_ready() -> bool:
        assert worker.alive(), worker.tail(40)
        return worker.log.read_text(errors="replace").count(" ready.") >= ready

    until(is_ready, seconds=120)


def kill_all_of(pid: int) -> None:
    """End a process and all its descendants at once, as the loss of a machine does."""
    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
