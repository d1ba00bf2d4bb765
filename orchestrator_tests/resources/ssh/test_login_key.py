"""Whom we talk to and who we are: host keys and private keys of every kind, with clear complaints."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from orchestrator.errors import HostKeyMismatch, SshError, SshRefused
from orchestrator.resources.ssh.connection import Ssh
from orchestrator.resources.ssh.host_keys import require_known_hosts
from orchestrator_tests.support.ssh_server import SshHost, connected, generated, write_key


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    with SshHost(tmp_path_factory.mktemp("host")) as host:
        yield host


def test_another_machine_at_the_address_is_refused_at_once(host: SshHost) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with pytest.raises(HostKeyMismatch, match=r"not ssh-ed25519 SHA256:"):
        connected(host, host_key=other)


def test_a_key_of_another_algorithm_is_not_even_negotiated(host: SshHost) -> None:
    other = asyncssh.generate_private_key("ssh-rsa").export_public_key().decode()
    with pytest.raises(HostKeyMismatch, match="no rsa-sha2-512 or rsa-sha2-256 key"):
        connected(host, host_key=other)


def test_a_planted_rsa_host_key_is_verified(tmp_path: Path) -> None:
    with SshHost(tmp_path, host_key_algorithm="ssh-rsa") as rsa_host:
        assert connected(rsa_host, host_key=rsa_host.host_key)


@pytest.mark.parametrize("host_key", [None, "", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-foo AAAA", "x !!!"])
def test_without_a_usable_planted_key_nothing_is_connected_to(host: SshHost, host_key: str | None) -> None:
    with pytest.raises(SshError, match="planted on"):
        Ssh(host.settings(), address="127.0.0.1", host_key=host_key)


def test_accept_new_takes_the_first_key_and_holds_on_to_it(host: SshHost, tmp_path: Path) -> None:
    with Ssh(host.settings(host_keys="accept-new"), address="127.0.0.1", host_key=None) as ssh:
        ssh.connect(deadline_seconds=5)
        ssh.connect(deadline_seconds=5)
        with SshHost(tmp_path) as impostor:
            host.network.target_port, port = impostor.network.target_port, host.network.target_port
            try:
                with pytest.raises(HostKeyMismatch):
                    ssh.connect(deadline_seconds=5)
            finally:
                host.network.target_port = port


def known_hosts(host: SshHost, path: Path, *, name: str | None = None, key: str | None = None) -> Path:
    line = f"{name or f'[127.0.0.1]:{host.network.port}'} {key or host.host_key}"
    path.write_text(f"# comment\n\nbroken line\n{line} a comment\n")
    return path


def test_known_hosts_verifies_by_address_and_port(host: SshHost, tmp_path: Path) -> None:
    path = known_hosts(host, tmp_path / "known_hosts")
    assert connected(host, host_keys="known_hosts", known_hosts=path)


def test_known_hosts_may_be_hashed_and_may_hold_several_keys(host: SshHost, tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    older = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    path.write_text("".join(f"[127.0.0.1]:{host.network.port} {key}\n" for key in (older, host.host_key)))
    subprocess.run(["ssh-keygen", "-H", "-f", path], check=True, capture_output=True)
    assert "127.0.0.1" not in path.read_text()
    assert connected(host, host_keys="known_hosts", known_hosts=path)


def test_known_hosts_with_another_key_is_a_mismatch(host: SshHost, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    path = known_hosts(host, tmp_path / "known_hosts", key=other)
    with pytest.raises(HostKeyMismatch):
        connected(host, host_keys="known_hosts", known_hosts=path)


def test_a_host_that_known_hosts_does_not_know_is_refused(host: SshHost, tmp_path: Path) -> None:
    path = known_hosts(host, tmp_path / "known_hosts", name="127.0.0.1")
    with pytest.raises(SshError, match=r"no key of 127\.0\.0\.1 port"):
        connected(host, host_keys="known_hosts", known_hosts=path)
    with pytest.raises(SshError, match="cannot be read: No such file"):
        connected(host, host_keys="known_hosts", known_hosts=tmp_path / "missing")


def test_a_missing_known_hosts_file_can_be_found_before_there_is_a_host(host: SshHost, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(SshError, match=r"SSH_KNOWN_HOSTS=.*missing cannot be read: No such file.*ssh-keyscan"):
        require_known_hosts(host.settings(host_keys="known_hosts", known_hosts=missing))
    missing.touch()
    require_known_hosts(host.settings(host_keys="known_hosts", known_hosts=missing))


@pytest.mark.parametrize("host_keys", ["planted", "accept-new"])
def test_no_known_hosts_file_is_needed_where_none_is_read(host: SshHost, tmp_path: Path, host_keys: str) -> None:
    require_known_hosts(host.settings(host_keys=host_keys, known_hosts=tmp_path / "missing"))


@pytest.mark.parametrize(
    ("algorithm", "file_format", "passphrase"),
    [
        ("ssh-rsa", "pkcs1-pem", None),  # what EC2 makes as an RSA key pair
        ("ssh-rsa", "pkcs1-pem", "open sesame"),
        ("ssh-rsa", "pkcs8-pem", None),
        ("ssh-rsa", "openssh", "open sesame"),
        ("ssh-ed25519", "openssh", None),  # what EC2 makes as an ED25519 key pair
        ("ssh-ed25519", "openssh", "open sesame"),
        ("ssh-ed25519", "pkcs8-pem", "open sesame"),
        ("ecdsa-sha2-nistp256", "pkcs1-pem", None),
        ("ecdsa-sha2-nistp521", "openssh", None),
    ],
)
def test_every_kind_of_private_key_logs_in(
    host: SshHost, tmp_path: Path, algorithm: str, file_format: str, passphrase: str | None
) -> None:
    key = asyncssh.generate_private_key(algorithm)
    public = key.export_public_key().decode().strip()
    path = write_key(
        tmp_path / "key", key.export_private_key(file_format, passphrase, rounds=4, ignore_few_rounds=True)
    )
    host.authorized.add(public)
    assert connected(host, host_key=host.host_key, key_path=path, key_passphrase=passphrase)


def complaint(host: SshHost, path: Path, **changes: object) -> str:
    with pytest.raises(SshRefused) as caught:
        Ssh(host.settings(key_path=path, **changes), address="127.0.0.1", host_key=host.host_key)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_key_that_cannot_be_used_is_explained(host: SshHost, tmp_path: Path) -> None:
    plain = generated(tmp_path / "plain")
    locked = generated(tmp_path / "locked", passphrase="right-one")
    damaged = write_key(tmp_path / "damaged", plain.read_bytes()[:120] + b"\n-----END OPENSSH PRIVATE KEY-----\n")
    dsa = tmp_path / "ed448"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed448", "-out", dsa], check=True, capture_output=True)
    assert "KEY_PATH" in complaint(host, tmp_path / "missing")
    assert "cannot be read: Is a directory" in complaint(host, tmp_path)
    assert "is a public key" in complaint(host, plain.with_suffix(".pub"))
    assert "set KEY_PASSPHRASE" in complaint(host, locked)
    wrong = complaint(host, locked, key_passphrase="wrong-one")
    assert "KEY_PASSPHRASE is wrong" in wrong
    assert "wrong-one" not in wrong
    assert "the file is damaged" in complaint(host, damaged)
    assert "neither RSA, ECDSA nor Ed25519" in complaint(host, dsa)
    assert "puttygen" in complaint(host, write_key(tmp_path / "a.ppk", b"PuTTY-User-Key-File-3: ssh-rsa\n"))
    assert "not a private key" in complaint(host, write_key(tmp_path / "text", b"hello\n"))


def test_a_passphrase_that_is_not_needed_does_no_harm(host: SshHost) -> None:
    assert connected(host, host_key=host.host_key, key_passphrase="superfluous")


def test_a_key_file_open_to_others_is_warned_about(
    host: SshHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = generated(tmp_path / "open")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="orchestrator.resources.ssh.login_key"):
        Ssh(host.settings(key_path=path), address="127.0.0.1", host_key=host.host_key)
    assert f"KEY_PATH={path} can be read by others; chmod 600 it" in caplog.text
