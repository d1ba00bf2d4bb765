"""A training on an SSH host, all that it reports, and a look at its processes; for tests of remote/."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from orchestrator.remote import RemoteTraining, TrainingExit, training
from orchestrator.resources import retry
from orchestrator.resources.retry import RetryPolicy
from orchestrator.resources.ssh.connection import Ssh
from orchestrator_tests.support.gate import PASS_IN_SHELL
from orchestrator_tests.support.ssh_server import SshHost

LOGGER = training.__name__
QUICK = replace(retry.REMOTE_FOLLOWING, answer_seconds=4)


class Follower:
    """One training on the host, with all that it says."""

    def __init__(
        self, host: SshHost, *, run_id: str = "", ssh: Ssh | None = None, following: RetryPolicy = QUICK
    ) -> None:
        self.run_id = run_id or uuid.uuid4().hex
        self.directory = host.home / ".orchestrator" / self.run_id
        self.ssh = ssh or Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key)
        self.training = RemoteTraining(self.ssh, self.run_id, following=following)
        self.said: list[str] = []
        self.checks = 0

    @property
    def text(self) -> str:
        return "".join(self.said)

    def start(self, *argv: str, seconds: float = 60, user: str | None = None, **environment: str) -> bool:
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        return self.training.start(argv, environment=environment, deadline=deadline, user=user)

    def check(self) -> None:
        self.checks += 1

    def follow(self, offset: int = 0) -> TrainingExit:
        return self.training.follow(self.said.append, check=self.check, offset=offset)

    def following(self) -> Future:
        return Future(self)


class Future(threading.Thread):
    """`follow` in a thread of its own."""

    def __init__(self, follower: Follower) -> None:
        super().__init__(daemon=True)
        self._follower = follower
        self.start()

    def run(self) -> None:
        self._outcome = self._follower.follow()

    def result(self) -> TrainingExit:
        self.join(120)
        assert not self.is_alive()
        return self._outcome


def connection_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of connections that broke, and were there again."""
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def programs_of(follower: Follower) -> set[str]:
    """The names of the programs that bear the training's mark."""
    names = set()
    for process in of_training(follower):
        with contextlib.suppress(psutil.NoSuchProcess):
            names.add(process.name())
    return names


def of_training(follower: Follower) -> list[psutil.Process]:
    """The processes that bear the training's mark."""
    mark = f"{follower.directory}/"
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ORCHESTRATOR_TRAINING") == mark and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def of_session(follower: Follower) -> list[int]:
    """The processes of the training's session, whether they bear its mark or not."""
    session = int((follower.directory / "child").readlink().name)
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != "zombie":
                found.append(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def supervisor_of(follower: Follower) -> psutil.Process:
    return psutil.Process(int((follower.directory / "pid").readlink().name.split()[0]))


def shell(*lines: str) -> Sequence[str]:
    return ("sh", "-c", "\n".join(lines))


GATED = shell("echo before", PASS_IN_SHELL, "echo after", "exit 5")
