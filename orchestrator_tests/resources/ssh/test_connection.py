"""One SSH connection: commands, any bytes both ways, deadlines, refusals, a network that fails."""

from __future__ import annotations

import shlex
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestrator.errors import SshRefused, SshUnreachable
from orchestrator.resources import retry
from orchestrator.resources.ssh import Ssh, SshResource
from orchestrator.resources.ssh.channel import KEPT_BYTES
from orchestrator.settings.groups import SshSettings
from orchestrator.settings.source import SettingsSource
from orchestrator_tests.support.gate import PASS_IN_SHELL, Gate
from orchestrator_tests.support.ssh_server import USER, SshHost, connected, generated

NASTY = ["a b", "it's", '"', "$(touch pwned)", "`id`", "line\nline", "-n", "--", "", "*", "~", "é→😀", "\\", ";&|#!"]


@pytest.fixture(scope="module")
def ssh(host: SshHost) -> Iterator[Ssh]:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        yield ssh


def login_at(host: SshHost, port: int) -> Ssh:
    return Ssh(host.settings(port=port), address="127.0.0.1", host_key=host.host_key)


# Commands


@example(NASTY)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arguments_arrive_as_they_are(ssh: Ssh, arguments: list[str]) -> None:
    answer = ssh.run(["printf", "%s\\0", *arguments])
    assert answer.stdout.decode().split("\0")[:-1] == arguments


def test_output_complaints_and_exit_status_are_told_apart(ssh: Ssh) -> None:
    answer = ssh.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (answer.exit_status, answer.stdout, answer.stderr) == (3, b"out\n", b"err\n")


def test_a_command_killed_by_a_signal_has_no_exit_status(ssh: Ssh) -> None:
    assert ssh.run(["sh", "-c", "kill -9 $PPID"]).exit_status is None


def test_much_input_and_much_output_at_once_do_not_block_each_other(ssh: Ssh) -> None:
    sent = bytes(range(256)) * 3000
    answer = ssh.run(["sh", "-c", "tee /dev/stderr"], stdin=sent)
    assert answer.stdout == sent
    assert answer.stderr == sent


def test_a_command_that_ends_without_reading_its_input_is_no_error(ssh: Ssh) -> None:
    assert ssh.run(["true"], stdin=b"x" * 5_000_000).exit_status == 0


def test_of_too_long_an_answer_only_the_beginning_is_kept(ssh: Ssh) -> None:
    assert len(ssh.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == KEPT_BYTES


def test_a_command_that_takes_too_long_is_given_up(host: SshHost) -> None:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        with pytest.raises(SshUnreachable, match="did not end within"):
            ssh.run(["sh", "-c", "while echo alive; do sleep 0.1; done"], timeout_seconds=0.5)
        assert not ssh.connected


def test_a_stream_is_passed_on_as_it_comes(ssh: Ssh, gate: Gate) -> None:
    seen: list[bytes] = []

    def on_stdout(data: bytes) -> None:
        seen.append(data)
        gate.open()

    script = f"echo first; {PASS_IN_SHELL}; echo second >&2; exit 4"
    status = ssh.stream(
        ["env", f"GATE={gate}", "sh", "-c", script], on_stdout=on_stdout, on_stderr=seen.append, silence_seconds=10
    )
    assert (status, seen) == (4, [b"first\n", b"second\n"])


def test_an_exception_in_a_callback_ends_the_stream_and_leaves_the_connection_usable(ssh: Ssh) -> None:
    def cancel(_: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ssh.stream(["yes"], on_stdout=cancel, on_stderr=cancel, silence_seconds=5)
    assert ssh.run(["true"]).exit_status == 0


# A network that fails


def test_a_broken_connection_is_reported_and_can_be_opened_again(host: SshHost) -> None:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        with pytest.raises(SshUnreachable, match=r"127\.0\.0\.1 port \d+ broke"):
            ssh.stream(
                ["sh", "-c", "echo now; sleep 60"],
                on_stdout=lambda _: host.cut(),
                on_stderr=lambda _: None,
                silence_seconds=20,
            )
        assert not ssh.connected
        ssh.connect(deadline_seconds=60)
        assert ssh.run(["true"]).exit_status == 0


def test_swallowed_traffic_is_noticed_by_the_silence(host: SshHost) -> None:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        try:
            with pytest.raises(SshUnreachable, match="nothing came for 1 s"):
                ssh.stream(
                    ["sh", "-c", "while echo alive; do sleep 0.2; done"],
                    on_stdout=lambda _: host.swallow(),
                    on_stderr=lambda _: None,
                    silence_seconds=1,
                )
            with pytest.raises(SshUnreachable, match="no answer within"):
                ssh.connect(deadline_seconds=1)
        finally:
            host.swallow(False)


def test_a_connection_that_died_in_silence_fails_the_next_command_in_time(host: SshHost) -> None:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        host.swallow()
        try:
            with pytest.raises(SshUnreachable, match="no answer within 1 s"):
                ssh.run(["true"], timeout_seconds=1)
        finally:
            host.swallow(False)


def test_connecting_waits_for_a_host_that_is_not_up_yet(host: SshHost) -> None:
    host.go_away()
    comes_back = threading.Timer(0.5, host.come_back)
    comes_back.start()
    assert connected(host, host_key=host.host_key)
    comes_back.join()


def test_a_host_that_never_answers_is_named_with_what_to_check(host: SshHost) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with login_at(host, port) as ssh, pytest.raises(SshUnreachable) as caught:
            ssh.connect(deadline_seconds=0.5)
    for word in ("127.0.0.1", str(port), "refused", "SECURITY_GROUP_ID", "SSH_PORT", "INSTANCE_ADDRESS"):
        assert word in str(caught.value)


def test_no_pause_between_two_attempts_lasts_beyond_the_deadline(host: SshHost) -> None:
    an_hour = replace(retry.SSH, total_seconds=0.5, first_pause_seconds=3600, longest_pause_seconds=3600)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings = host.settings(port=unused.getsockname()[1])
        with (
            Ssh(settings, address="127.0.0.1", host_key=host.host_key, policy=an_hour) as ssh,
            pytest.raises(SshUnreachable),
        ):
            ssh.connect()


def test_what_is_not_an_ssh_server_is_not_waited_for_longer_than_the_deadline(host: SshHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ssh = login_at(host, mute.getsockname()[1])
        with pytest.raises(SshUnreachable, match="no answer within"):
            ssh.connect(deadline_seconds=1)


def test_closing_from_another_thread_ends_a_stream_and_a_connect(host: SshHost) -> None:
    with Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        closer = threading.Thread(target=ssh.close)
        with pytest.raises(SshUnreachable):
            ssh.stream(
                ["sh", "-c", "echo now; sleep 60"],
                on_stdout=lambda _: closer.start(),
                on_stderr=lambda _: None,
                silence_seconds=60,
            )
        with pytest.raises(SshUnreachable, match="closed"):
            ssh.connect(deadline_seconds=60)
        with pytest.raises(SshUnreachable, match="not open"):
            ssh.run(["true"])


# Logins


def test_a_refused_login_is_explained(host: SshHost, tmp_path: Path) -> None:
    stranger = host.settings(key_path=generated(tmp_path / "stranger"))
    policy = replace(retry.SSH, login_seconds=0.5)
    with (
        Ssh(stranger, address="127.0.0.1", host_key=host.host_key, policy=policy) as ssh,
        pytest.raises(SshRefused, match=f"refused the login of SSH_USER={USER} .*KEY_PAIR_NAME"),
    ):
        ssh.connect()


def test_a_login_that_is_set_up_a_little_later_is_waited_for(host: SshHost, tmp_path: Path) -> None:
    path = generated(tmp_path / "late")
    public = " ".join(path.with_suffix(".pub").read_text().split()[:2])
    authorize = threading.Timer(0.5, host.authorized.add, [public])
    authorize.start()
    assert connected(host, host_key=host.host_key, key_path=path)
    authorize.join()


def test_the_resource_connects_with_the_settings_of_the_pipeline(host: SshHost) -> None:
    values = {"SSH_PORT": str(host.network.port), "KEY_PATH": str(host.key_path)}
    settings = SettingsSource(values=values, lookup=lambda _: None).read(SshSettings)
    with SshResource().connect(settings, address="127.0.0.1", host_key=host.host_key) as ssh:
        ssh.connect(deadline_seconds=60)
        assert ssh.run(shlex.split("echo 'hello there'")).stdout == b"hello there\n"
