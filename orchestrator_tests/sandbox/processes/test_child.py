"""Programs of the sandbox end when they should, and nothing of them outlives that."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import SandboxError
from orchestrator_sandbox.processes.child import ChildProcess, free_port, kept_port
from orchestrator_tests.support.waiting import until

PYTHON = sys.executable
LEAVES_A_DAEMON = "setsid sleep 300 & echo $! > daemon.pid; "
IGNORES_TERM = (
    "import signal; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.alarm(300); signal.pause()"
)
PARENT = """
import signal, sys
from pathlib import Path
from orchestrator_sandbox.processes.child import ChildProcess
here = Path(sys.argv[1])
child = ChildProcess(["sh", "-c", "setsid sleep 300 & echo $! > daemon.pid; sleep 300"],
                     name="it", log=here / "log", cwd=here)
(here / "program.pid").write_text(str(child.pid))
signal.alarm(300)
signal.pause()
"""


def start(tmp_path: Path, *argv: str, grace_seconds: float = 10) -> ChildProcess:
    return ChildProcess(argv, name="the program", log=tmp_path / "log", cwd=tmp_path, grace_seconds=grace_seconds)


def pid_in(file: Path) -> int:
    return int(until(lambda: file.exists() and file.read_text()))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_closing_ends_the_program_and_a_descendant_that_became_a_daemon(tmp_path: Path) -> None:
    with start(tmp_path, "sh", "-c", LEAVES_A_DAEMON + "sleep 300") as program:
        daemon = pid_in(tmp_path / "daemon.pid")
        assert program.alive()
        assert os.getsid(program.pid) != os.getsid(0)
    assert not program.alive()
    assert program.returncode == 128 + signal.SIGTERM
    assert gone(daemon)
    assert gone(program.pid)
    program.close()


def test_a_program_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, PYTHON, "-c", IGNORES_TERM, grace_seconds=0.2) as program:
        until(lambda: "ready" in program.tail())
    assert program.returncode == 128 + signal.SIGKILL


def test_nothing_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([PYTHON, "-c", PARENT, str(tmp_path)])
    program, daemon = pid_in(tmp_path / "program.pid"), pid_in(tmp_path / "daemon.pid")
    parent.kill()
    parent.wait()
    until(lambda: gone(program) and gone(daemon))


def test_what_a_program_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    with start(tmp_path, "sh", "-c", LEAVES_A_DAEMON + "exit 7") as program:
        assert program.wait(10) == 7
        assert gone(pid_in(tmp_path / "daemon.pid"))


def test_a_descendant_that_was_left_alone_does_not_stay_as_a_zombie(tmp_path: Path) -> None:
    with start(tmp_path, "sh", "-c", "sh -c 'true & echo $! > orphan.pid'; sleep 300") as program:
        orphan = pid_in(tmp_path / "orphan.pid")
        until(lambda: not psutil.pid_exists(orphan))
        assert program.alive()


def test_a_program_killed_by_a_signal_says_so(tmp_path: Path) -> None:
    with start(tmp_path, "sleep", "300") as program:
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait(10) == 128 + signal.SIGKILL


def test_the_end_can_be_asked_of_the_guardian_itself(tmp_path: Path) -> None:
    with start(tmp_path, "sleep", "300") as program:
        guardian = psutil.Process(program.pid).ppid()
        os.kill(guardian, signal.SIGTERM)
        assert program.wait(10) == 128 + signal.SIGTERM


def test_a_program_that_runs_on_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with start(tmp_path, "sleep", "300") as program, pytest.raises(SandboxError, match="has not ended"):
        program.wait(0.05)


def test_an_early_death_is_told_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    message = r"exit status 3(.|\n)*no such table"
    program = start(tmp_path, "sh", "-c", "echo no such table; exit 3")
    with program, pytest.raises(SandboxError, match=message):
        program.await_http(f"http://127.0.0.1:{free_port()}/", 20)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with start(tmp_path, "no-such-program") as program:
        with pytest.raises(SandboxError, match="no-such-program cannot be started"):
            program.await_port(free_port())
        with pytest.raises(SandboxError, match="the program did not start"):
            _ = program.pid


def test_a_server_is_awaited(tmp_path: Path) -> None:
    port = free_port()
    with start(tmp_path, PYTHON, "-m", "http.server", "--bind", "127.0.0.1", str(port)) as program:
        program.await_port(port)
        program.await_http(f"http://127.0.0.1:{port}/")


def test_a_server_that_never_listens_is_given_up(tmp_path: Path) -> None:
    message = r"did not listen on 127\.0\.0\.1:\d+ within 0\.1 s"
    with start(tmp_path, "sleep", "300") as program, pytest.raises(SandboxError, match=message):
        program.await_port(free_port(), seconds=0.1)


def test_a_port_is_kept_as_long_as_it_is_free(tmp_path: Path) -> None:
    file = tmp_path / "port"
    port = kept_port(file)
    assert kept_port(file) == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert kept_port(file) != port


def test_a_free_port_is_none_that_the_kernel_gives_to_others_meanwhile() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(first <= free_port() <= last for _ in range(50))
