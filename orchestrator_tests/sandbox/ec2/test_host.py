"""A login on a sandbox machine behaves as one on a real machine with OpenSSH."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import psutil
import pytest

from orchestrator_tests.support.machines import Booted, Done, booting, run
from orchestrator_tests.support.waiting import until


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JENKINS_TOKEN", "a-secret-of-the-orchestrator")
        with booting(tmp_path_factory.mktemp("machine")) as one:
            one.wait_until_up()
            yield one


@pytest.fixture(scope="module")
def client(booted: Booted) -> Iterator[paramiko.SSHClient]:
    with booted.connect() as connected:
        yield connected


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not psutil.pid_exists(pid)


def test_a_command_gets_its_input_and_returns_output_errors_and_exit_status(client: paramiko.SSHClient) -> None:
    payload = bytes(range(256)) * 100
    assert run(client, "cat; echo oops >&2; exit 7", payload) == Done(7, payload, b"oops\n")


def test_a_signal_is_reported_as_one(client: paramiko.SSHClient) -> None:
    assert run(client, "kill -9 $$").status == -1


def test_a_large_output_arrives_whole_even_when_read_late(client: paramiko.SSHClient) -> None:
    assert len(run(client, "head -c 50000000 /dev/zero").stdout) == 50_000_000


def test_output_arrives_whole_after_the_errors_are_closed(client: paramiko.SSHClient) -> None:
    assert run(client, "exec 2>&-; head -c 3000000 /dev/zero").stdout.count(b"\0") == 3_000_000


def test_a_command_that_does_not_read_its_input_ends_well(client: paramiko.SSHClient) -> None:
    assert run(client, "exec <&-; echo fine", b"x" * 1_000_000) == Done(0, b"fine\n")


def test_the_exit_status_does_not_wait_for_a_background_process_but_its_output_is_kept(
    client: paramiko.SSHClient, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    transport = client.get_transport()
    assert transport is not None
    with transport.open_session() as channel:
        channel.exec_command(f"(read word < {go}; echo $word) & exit 3")
        assert channel.recv_exit_status() == 3
        go.write_text("later\n")
        assert channel.makefile("rb").read() == b"later\n"


def test_a_login_starts_with_a_clean_environment(client: paramiko.SSHClient, booted: Booted) -> None:
    home = booted.machine.config.directory / "home" / "ubuntu"
    lines = run(client, "pwd; env; command -v python").stdout.decode().splitlines()
    assert lines[0] == str(home)
    assert {f"HOME={home}", "USER=ubuntu", "LANG=C.UTF-8"} <= set(lines)
    assert str(Path(sys.executable).parent / "python") in lines
    assert not any("a-secret-of-the-orchestrator" in line or line.startswith("PYTHON") for line in lines)


def test_the_host_process_holds_no_secret_in_its_arguments_or_environment(booted: Booted) -> None:
    config = booted.machine.config
    assert stat.S_IMODE((config.directory / "host.json").stat().st_mode) == 0o600
    for process in psutil.Process().children(recursive=True):
        if process.status() == psutil.STATUS_ZOMBIE:
            continue
        if str(config.directory / "host.json") in process.cmdline():
            assert "JENKINS_TOKEN" not in process.environ()
            assert b"PRIVATE KEY" not in " ".join(process.cmdline()).encode()


def test_another_key_is_refused(booted: Booted) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        booted.connect(key=paramiko.RSAKey.generate(2048))


def test_a_user_name_that_is_a_path_is_refused(booted: Booted) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        booted.connect(user="../root")


def test_a_daemon_that_has_ended_is_not_there_any_more(client: paramiko.SSHClient) -> None:
    pid = int(run(client, "setsid sh -c 'echo $$; exec >&-; exit 1' & wait").stdout)
    until(lambda: run(client, f"kill -0 {pid}").status != 0)


def test_a_terminal_is_one_and_its_end_hangs_up_its_programs(booted: Booted, client: paramiko.SSHClient) -> None:
    with booted.connect() as other:
        channel = other.invoke_shell(term="vt100", width=91)
        channel.resize_pty(width=77)
        channel.sendall(b"stty size; echo pid=$$ $TERM; exec sleep 1000\n")
        screen = b""
        while b" vt100" not in screen:
            screen += channel.recv(1000)
        pid = int(screen.split(b"pid=")[-1].split()[0])
    assert b" 77" in screen
    until(gone(pid))


def test_a_dropped_connection_ends_no_program_without_a_terminal(booted: Booted) -> None:
    with booted.connect() as other:
        transport = other.get_transport()
        assert transport is not None
        channel = transport.open_session()
        channel.exec_command("echo $$; exec sleep 1000")
        pid = int(channel.recv(100))
    with booted.connect() as again:
        assert run(again, f"kill -0 {pid} && kill {pid}").status == 0


def test_files_go_over_sftp_and_stay_within_the_home_directory(client: paramiko.SSHClient, booted: Booted) -> None:
    with client.open_sftp() as files:
        files.putfo(io.BytesIO(b"content"), "/a-file")
        assert "a-file" in files.listdir(".")
        with pytest.raises(OSError, match="No such file"):
            files.stat("../../../host.json")
    assert (booted.machine.config.directory / "home/ubuntu/a-file").read_bytes() == b"content"


def test_connections_can_be_cut(booted: Booted) -> None:
    with booted.connect() as other:
        transport = other.get_transport()
        assert transport is not None
        booted.machine.tell("cut")
        until(lambda: not transport.is_active())
    booted.connect().close()


def test_connections_can_be_refused_for_a_while(booted: Booted) -> None:
    def connect() -> bool:
        try:
            booted.connect().close()
        except (OSError, EOFError, paramiko.SSHException):
            return False
        return True

    booted.machine.tell("refuse 4")
    until(lambda: not connect(), every=0.01)
    until(connect)


def test_traffic_can_be_swallowed_without_a_reset(booted: Booted) -> None:
    with booted.connect() as other:
        transport = other.get_transport()
        assert transport is not None
        channel = transport.open_session()
        channel.exec_command("cat")
        booted.machine.tell("swallow 600")
        channel.settimeout(0.3)

        def silent() -> bool:
            try:
                channel.sendall(b"x")
                return not channel.recv(1)
            except TimeoutError:
                return True

        until(silent)
        booted.machine.tell("swallow 0")
        channel.settimeout(10)
        assert channel.recv(1) == b"x"
