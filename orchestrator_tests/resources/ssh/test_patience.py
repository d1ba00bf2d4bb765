"""Patience with hosts that are young, slow, or want what nobody can give them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_PARTIALLY_SUCCESSFUL

from orchestrator.errors import HostKeyMismatch, SshRefused, SshUnreachable
from orchestrator.pipeline.training.on_instance import young_seconds
from orchestrator.resources import retry
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_tests.support.ssh_server import SshHost, generated

QUICK = replace(retry.SSH, login_seconds=0, refused_pause_seconds=0.2)


def login(host: SshHost, *, policy: retry.SshPolicy = QUICK, young: float = 60, **changes: object) -> Ssh:
    settings = host.settings(**changes)
    return Ssh(settings, address="127.0.0.1", host_key=host.host_key, policy=policy, young_seconds=young)


# A young machine


@pytest.mark.parametrize("name", ["late", "later"])
def test_a_young_host_that_refuses_the_login_gets_more_time(host: SshHost, tmp_path: Path, name: str) -> None:
    path = generated(tmp_path / name)
    public = " ".join(path.with_suffix(".pub").read_text().split()[:2])
    with login(host, key_path=path) as ssh:
        with pytest.raises(SshUnreachable, match=r"refused the login .* being set up"):
            ssh.connect(deadline_seconds=0.5)
        authorize = threading.Timer(0.5, host.authorized.add, [public])
        authorize.start()
        ssh.connect(deadline_seconds=30)
        authorize.join()
        assert ssh.run(["true"]).exit_status == 0


def test_a_young_host_may_show_another_key_first_and_is_sent_nothing_until_then(host: SshHost, tmp_path: Path) -> None:
    with SshHost(tmp_path) as impostor, login(host) as ssh:
        impostor.authorized |= host.authorized
        host.network.target_port, port = impostor.network.target_port, host.network.target_port
        try:
            with pytest.raises(SshUnreachable, match=r"showed the ssh-ed25519 key .* being set up"):
                ssh.connect(deadline_seconds=0.5)
            assert not ssh.connected
        finally:
            host.network.target_port = port
        ssh.connect(deadline_seconds=30)
        assert ssh.run(["true"]).exit_status == 0


def test_a_young_host_may_have_no_key_of_the_kind_first(host: SshHost, tmp_path: Path) -> None:
    with SshHost(tmp_path, host_key_algorithm="ssh-rsa") as impostor, login(host) as ssh:
        host.network.target_port, port = impostor.network.target_port, host.network.target_port
        back = threading.Timer(0.5, setattr, [host.network, "target_port", port])
        back.start()
        ssh.connect(deadline_seconds=30)
        back.join()


def test_a_host_that_is_not_young_any_more_gets_no_more_time(host: SshHost, tmp_path: Path) -> None:
    stranger = generated(tmp_path / "stranger")
    with login(host, young=0, key_path=stranger) as ssh, pytest.raises(SshRefused):
        ssh.connect(deadline_seconds=30)
    with SshHost(tmp_path) as other:
        ssh = Ssh(host.settings(port=other.network.port), address="127.0.0.1", host_key=host.host_key)
        with ssh, pytest.raises(HostKeyMismatch):
            ssh.connect(deadline_seconds=30)


def test_who_was_refused_does_not_come_again_at_once() -> None:
    assert retry.SSH.refused_pause_seconds >= 5  # sshd_config(5): PerSourcePenalties, authfail


@pytest.mark.parametrize(("age", "seconds"), [(-60, 180), (0, 180), (60, 120), (180, 0), (9999, 0)])
def test_an_instance_is_young_for_three_minutes(age: int, seconds: int) -> None:
    instance = SimpleNamespace(launched_at=datetime.now(UTC) - timedelta(seconds=age))
    assert young_seconds(instance) == pytest.approx(seconds, abs=5)  # type: ignore[arg-type]


# A slow login


@pytest.fixture
def slow(host: SshHost) -> Iterator[SshHost]:
    yield host
    host.login_seconds = 0


def test_a_reconnect_gets_twice_what_the_slowest_login_took(slow: SshHost) -> None:
    impatient = replace(retry.SSH, last_attempt_seconds=0.1)
    slow.login_seconds = 2
    with login(slow, policy=impatient) as ssh:
        ssh.connect()
        slow.cut()
        ssh.connect(deadline_seconds=0.5)
        assert ssh.run(["true"]).exit_status == 0


@pytest.mark.services
@pytest.mark.parametrize("seconds", [1.5, 3])
def test_a_login_that_takes_longer_than_a_try_gets_longer_tries(slow: SshHost, seconds: float) -> None:
    slow.login_seconds = seconds
    with login(slow, policy=replace(retry.SSH, connect_seconds=0.5, last_attempt_seconds=0.1)) as ssh:
        ssh.connect(deadline_seconds=30)
        assert ssh.run(["true"]).exit_status == 0


def test_patience_with_a_slow_login_has_an_end(slow: SshHost) -> None:
    slow.login_seconds = 60
    policy = replace(retry.SSH, connect_seconds=0.5, last_attempt_seconds=0.1, longest_login_seconds=1)
    with login(slow, policy=policy) as ssh, pytest.raises(SshUnreachable, match="no answer within 1 s"):
        ssh.connect(deadline_seconds=3)


# A login that the key alone does not open


class Demanding(paramiko.ServerInterface):
    """A host that wants something else than a key, or something more."""

    def __init__(self, result: int, methods: str) -> None:
        self.tries = 0
        self._result = result
        self._methods = methods

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.tries += 1
        return self._result

    def get_allowed_auths(self, username: str) -> str:
        return self._methods


@contextmanager
def serving(server: Demanding, host_key: paramiko.PKey) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            transport = paramiko.Transport(connection)
            transport.add_server_key(host_key)
            transport.start_server(server=server)
            transport.join(60)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(60)


@pytest.mark.parametrize(
    ("result", "methods", "sentence"),
    [
        (AUTH_PARTIALLY_SUCCESSFUL, "keyboard-interactive", "wants more than the key: keyboard-interactive"),
        (AUTH_PARTIALLY_SUCCESSFUL, "password", "wants more than the key: password"),
        (AUTH_FAILED, "keyboard-interactive,password", "takes no key, but keyboard-interactive, password"),
    ],
)
def test_a_second_factor_is_refused_at_once(host: SshHost, result: int, methods: str, sentence: str) -> None:
    server, host_key = Demanding(result, methods), paramiko.ECDSAKey.generate()
    with serving(server, host_key) as port:
        settings: SshSettings = host.settings(port=port)
        public = f"{host_key.get_name()} {host_key.get_base64()}"
        with (
            Ssh(settings, address="127.0.0.1", host_key=public, young_seconds=60) as ssh,
            pytest.raises(SshRefused, match=rf"{sentence}.*AuthenticationMethods.*SSH_USER=.*AMI_ID"),
        ):
            ssh.connect()
    assert server.tries == 1
