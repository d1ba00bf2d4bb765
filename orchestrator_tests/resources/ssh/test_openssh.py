"""The same promises against OpenSSH's own sshd, started here with a configuration and keys of its own."""

from __future__ import annotations

import logging
import shutil
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from orchestrator.errors import HostKeyMismatch, SshRefused
from orchestrator.remote import RemoteTraining, TrainingExit
from orchestrator.resources import retry
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_tests.support.follower import LOGGER, connection_log
from orchestrator_tests.support.gate import PASS_IN_SHELL, Gate
from orchestrator_tests.support.openssh_server import KEY_KINDS, OpenSshServer
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSshServer]:
    with OpenSshServer(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


class OpenSshTraining:
    """A training whose directory is removed from the home of the user that runs the tests."""

    def __init__(self, sshd: OpenSshServer) -> None:
        self.run_id = f"test-{uuid.uuid4().hex}"
        self.directory = sshd.home / ".orchestrator" / self.run_id
        self.ssh = sshd.connection()
        self.training = RemoteTraining(
            self.ssh, self.run_id, following=replace(retry.REMOTE_FOLLOWING, answer_seconds=10)
        )
        self.said: list[str] = []

    def start(self, *argv: str, seconds: float = 60, **environment: str) -> bool:
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        return self.training.start(argv, environment=environment, deadline=deadline)

    def follow(self) -> TrainingExit:
        return self.training.follow(self.said.append)

    @property
    def text(self) -> str:
        return "".join(self.said)


@pytest.fixture
def run(sshd: OpenSshServer) -> Iterator[OpenSshTraining]:
    run = OpenSshTraining(sshd)
    with run.ssh:
        yield run
        run.training.stop(grace_seconds=0)
    shutil.rmtree(run.directory)
    if not list(run.directory.parent.iterdir()):
        run.directory.parent.rmdir()


@pytest.mark.parametrize("host", KEY_KINDS)
@pytest.mark.parametrize("kind", KEY_KINDS)
def test_each_kind_of_key_logs_in_and_each_kind_of_host_key_is_verified(
    sshd: OpenSshServer, kind: str, host: str
) -> None:
    with sshd.connection(kind=kind, host=host) as ssh:
        ssh.connect(deadline_seconds=10)
        answer = ssh.run(["sh", "-c", 'cat; echo "$1" >&2; exit 3', "sh", "a  'b'\n$(id)"], stdin=b"x" * 300_000)
    assert (answer.exit_status, len(answer.stdout), answer.stderr) == (3, 300_000, b"a  'b'\n$(id)\n")


def test_another_host_key_is_refused(sshd: OpenSshServer) -> None:
    other = sshd.generate("another", "ed25519").with_suffix(".pub").read_text()
    settings = SshSettings(user=sshd.user, port=sshd.port, key_path=sshd.keys["rsa"])
    with Ssh(settings, address="127.0.0.1", host_key=other) as ssh, pytest.raises(HostKeyMismatch):
        ssh.connect(deadline_seconds=10)


def test_a_stranger_is_refused(sshd: OpenSshServer) -> None:
    key_path, policy = sshd.generate("stranger", "ed25519"), replace(retry.SSH, login_seconds=0.5)
    with sshd.connection(key_path=key_path, policy=policy) as ssh, pytest.raises(SshRefused):
        ssh.connect(deadline_seconds=10)


def test_arguments_environment_and_exit_status_come_through(run: OpenSshTraining) -> None:
    nasty = ["it's", '"', "$(id)", "`id`", "line\nline", "", "-n", "é→😀"]
    show = "import sys, os; sys.stdout.write(ascii([sys.argv[1:], os.environ['A']])); sys.exit(7)"
    run.start(sys.executable, "-c", show, *nasty, A="$(id)\n'")
    outcome = run.follow()
    assert (outcome.kind, outcome.status) == ("exited", 7)
    assert run.text == ascii([nasty, "$(id)\n'"])


def test_a_killed_sshd_session_changes_nothing_but_a_log_line(
    sshd: OpenSshServer, run: OpenSshTraining, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    script = f"echo before; {PASS_IN_SHELL}; echo after; exit 5"

    def write(text: str) -> None:
        run.said.append(text)
        if text == "before\n":
            for process in sshd.session_processes():
                process.kill()

    run.start("sh", "-c", script, GATE=str(gate))
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(run.training.follow, write)
        until(lambda: any("Connected again" in line for line in connection_log(caplog)))
        gate.open()
        outcome = following.result()
    assert (outcome.kind, outcome.status) == ("exited", 5)
    assert run.text == "before\nafter\n"
    assert len(connection_log(caplog)) == 2


def test_the_deadline_ends_grandchildren_too(run: OpenSshTraining) -> None:
    run.start("sh", "-c", f"{sys.executable} -c 'import signal; signal.alarm(300); signal.pause()' & wait", seconds=1)
    assert run.follow().kind == "deadline"
    mark = f"{run.directory}/"
    alive = [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("ORCHESTRATOR_TRAINING") == mark
    ]
    assert not alive


def test_much_output_comes_whole(run: OpenSshTraining) -> None:
    run.start("sh", "-c", "seq 1 500000")
    assert run.follow().succeeded
    assert run.text == "".join(f"{number}\n" for number in range(1, 500_001))


def test_started_twice_it_runs_once(sshd: OpenSshServer, run: OpenSshTraining) -> None:
    assert run.start("sh", "-c", "echo once") is True
    with sshd.connection() as ssh:
        again = RemoteTraining(ssh, run.run_id)
        assert not again.start(["echo", "twice"], environment={}, deadline=datetime.now(UTC))
    assert run.follow().succeeded
    assert run.text == "once\n"
