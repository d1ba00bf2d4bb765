from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paramiko
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from orchestrator.resources.ec2.user_data import HostKey, cloud_config
from orchestrator_tests.support.waiting import until

TOMORROW = datetime.now(UTC) + timedelta(days=1)


def stub(directory: Path, name: str, script: str) -> None:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def boot(user_data: str, directory: Path, *, shutdown: str) -> None:
    """Do with `bootcmd` what cloud-init does at each boot: run it in /bin/sh and wait for its end."""
    stub(directory, "shutdown", shutdown)
    stub(directory, "poweroff", f'echo poweroff "$@" >> {directory}/calls')
    stub(directory, "sleep", "exec /bin/sleep 0.1")
    script = directory / "bootcmd.sh"
    script.write_text("#!/bin/sh\n" + "\n".join(yaml.safe_load(user_data)["bootcmd"]) + "\n")
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    subprocess.run(["/bin/sh", str(script)], env=environment, check=True, timeout=10, stdout=subprocess.PIPE)


def calls(directory: Path) -> list[str]:
    try:
        return (directory / "calls").read_text().splitlines()
    except FileNotFoundError:
        return []


def test_the_machine_powers_itself_off_at_its_deadline(tmp_path: Path) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=2)
    user_data = cloud_config(host_key=HostKey.generate(), deadline=deadline)
    boot(user_data, tmp_path, shutdown=f'echo shutdown "$@" $(date +%s) >> {tmp_path}/calls')
    assert calls(tmp_path) == [], "booting neither waits for the deadline nor runs ahead of it"
    (call,) = until(lambda: calls(tmp_path))
    assert call.startswith("shutdown -P now ")
    assert int(call.split()[-1]) >= deadline.timestamp()


def test_when_shutdown_fails_the_power_is_cut(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    boot(cloud_config(host_key=HostKey.generate(), deadline=past), tmp_path, shutdown="exit 1")
    assert until(lambda: calls(tmp_path)) == ["poweroff -f"]


def test_a_machine_that_boots_after_its_deadline_powers_off_at_once(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=30)
    user_data = cloud_config(host_key=HostKey.generate(), deadline=past)
    boot(user_data, tmp_path, shutdown=f'echo shutdown "$@" >> {tmp_path}/calls')
    assert until(lambda: calls(tmp_path)) == ["shutdown -P now"]


def test_the_deadline_counts_in_utc_whatever_zone_it_is_given_in() -> None:
    key = HostKey.generate()
    in_tokyo = datetime.fromisoformat("2031-05-17T17:30:00+09:00")
    in_utc = datetime(2031, 5, 17, 8, 30, tzinfo=UTC)
    assert cloud_config(host_key=key, deadline=in_tokyo) == cloud_config(host_key=key, deadline=in_utc)


def test_the_host_key_is_installed_in_the_place_of_the_images_own() -> None:
    key = HostKey.generate()
    document = cloud_config(host_key=key, deadline=TOMORROW)
    assert document.startswith("#cloud-config\n")
    assert len(document.encode()) < 16 * 1024
    config = yaml.safe_load(document)
    assert config["ssh_deletekeys"] is True
    assert config["ssh_keys"] == {"ed25519_private": key.private, "ed25519_public": key.public}


def test_a_host_key_is_a_matching_pair_that_openssh_and_paramiko_read() -> None:
    key = HostKey.generate()
    private = load_ssh_private_key(key.private.encode(), password=None)
    public = load_ssh_public_key(key.public.encode())
    assert private.public_key() == public
    kind, blob = key.public.split()
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"host {kind} {blob}")
    assert entry
    assert kind == "ssh-ed25519"


def test_each_instance_gets_another_host_key_whose_private_half_is_not_shown() -> None:
    one, other = HostKey.generate(), HostKey.generate()
    assert one.public != other.public
    assert "PRIVATE" not in repr(one)


def booted_on_443(tmp_path: Path, *, socket: bool) -> tuple[Path, list[str]]:
    """Do with the second `bootcmd` what cloud-init does, in a folder instead of /, twice; what systemctl was told."""
    user_data = cloud_config(host_key=HostKey.generate(), deadline=TOMORROW, ssh_port=443)
    _, listen = yaml.safe_load(user_data)["bootcmd"]
    told = tmp_path / "told"
    answer = "exit 0" if socket else 'case "$*" in *is-active*) exit 3 ;; esac'
    stub(tmp_path, "systemctl", f'echo "$@" >>{told}; {answer}')
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = listen.replace("/etc/", f"{tmp_path}/etc/")
    for _ in range(2):
        done = subprocess.run(["/bin/sh", "-c", script], env=environment, check=True, timeout=30, capture_output=True)
        assert not done.stderr
    return tmp_path / "etc", told.read_text().splitlines()


def test_the_ssh_server_is_made_to_listen_on_443_and_only_there(tmp_path: Path) -> None:
    (tmp_path / "etc" / "ssh").mkdir(parents=True)
    (tmp_path / "etc" / "ssh" / "sshd_config").write_text("PermitRootLogin no\n")
    etc, told = booted_on_443(tmp_path, socket=True)
    assert (etc / "ssh" / "sshd_config").read_text() == (
        f"Include {etc}/ssh/sshd_config.d/00-orchestrator.conf\nPermitRootLogin no\n"
    )
    assert (etc / "systemd" / "system" / "ssh.socket.d" / "00-orchestrator.conf").read_text() == (
        "[Socket]\nListenStream=\nListenStream=0.0.0.0:443\n"
    )
    assert told == ["daemon-reload", "is-active --quiet ssh.socket", "stop ssh.service", "restart ssh.socket"]


def test_a_server_without_a_socket_reads_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "etc" / "ssh").mkdir(parents=True)
    include = f"# Debian's\nInclude {tmp_path}/etc/ssh/sshd_config.d/*.conf\n"
    (tmp_path / "etc" / "ssh" / "sshd_config").write_text(include)
    etc, told = booted_on_443(tmp_path, socket=False)
    assert (etc / "ssh" / "sshd_config").read_text() == include
    assert told[-1] == "--no-block try-restart ssh.service sshd.service"


def test_on_other_ports_the_images_own_server_listens() -> None:
    key = HostKey.generate()
    same = {cloud_config(host_key=key, deadline=TOMORROW, ssh_port=port) for port in (22, 2222)}
    assert same == {cloud_config(host_key=key, deadline=TOMORROW)}


@pytest.mark.services
@pytest.mark.parametrize("included", [True, False])
def test_openssh_listens_there(tmp_path: Path, included: bool) -> None:
    (tmp_path / "etc" / "ssh").mkdir(parents=True)
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    include = f"Include {tmp_path}/etc/ssh/sshd_config.d/*.conf\n" if included else ""
    (tmp_path / "etc" / "ssh" / "sshd_config").write_text(f"{include}HostKey {key}\n#Port 22\nMatch User x\n")
    etc, _ = booted_on_443(tmp_path, socket=False)
    asked = subprocess.run(
        ["/usr/sbin/sshd", "-T", "-f", str(etc / "ssh" / "sshd_config")], capture_output=True, text=True, check=True
    )
    assert [line for line in asked.stdout.splitlines() if line.startswith("port ")] == ["port 443"]


@pytest.mark.services
def test_cloud_init_finds_the_user_data_valid(tmp_path: Path) -> None:
    document = tmp_path / "user-data"
    document.write_text(cloud_config(host_key=HostKey.generate(), deadline=TOMORROW, ssh_port=443))
    schema = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(document)], capture_output=True, text=True, check=False
    )
    assert schema.returncode == 0, schema.stdout + schema.stderr
    assert "Valid" in schema.stdout + schema.stderr
