"""A running EC2 instance: OpenSSH on port 22 of its own loopback address; for loop/test_other_systems."""

from __future__ import annotations

import itertools
import socket
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import pytest
import yaml

from orchestrator_sandbox.processes.child import ChildProcess

SSH_PORT = 22
FIRST_ADDRESS = IPv4Address("127.22.0.1")
# What Debian's /etc/ssh/sshd_config says, but for the SFTP subsystem: not every image has one.
DEBIAN = "KbdInteractiveAuthentication no\nUsePAM yes\nX11Forwarding yes\nPrintMotd no\nAcceptEnv LANG LC_*\n"


def free_address() -> str:
    """A loopback address whose port 22 is free."""
    refusal = ""
    for number in itertools.islice(itertools.count(), 200):
        address = str(FIRST_ADDRESS + number)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, SSH_PORT))
            except OSError as error:
                refusal = str(error)
            else:
                return address
    pytest.fail(f"port 22 of {FIRST_ADDRESS} and the addresses after it cannot be had: {refusal}")


class SshdMachine:
    """An sshd, and whatever is started through it; `close` ends both, as a power cut would.

    Args:
        directory: for its keys, configuration and log; nobody but root may write above it.
        user_data: the cloud-config, of which the host key is taken.
        authorized_key: public key that may log in.
        impostor: it has a host key of its own instead.
    """

    def __init__(self, directory: Path, *, user_data: str, authorized_key: str, impostor: bool) -> None:
        self.address = free_address()
        directory.mkdir(parents=True)
        host_key = directory / "host_key"
        if impostor:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
        else:
            host_key.touch(0o600)
            host_key.write_text(yaml.safe_load(user_data)["ssh_keys"]["ed25519_private"])
        authorized = directory / "authorized_keys"
        authorized.write_text(authorized_key + "\n")
        config = directory / "sshd_config"
        config.write_text(
            f"{DEBIAN}Port {SSH_PORT}\nListenAddress {self.address}\nHostKey {host_key}\n"
            f"AuthorizedKeysFile {authorized}\nPidFile none\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks up what is not logged in yet
        self._sshd = ChildProcess(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
            name=f"sshd on {self.address}",
            log=directory / "sshd.log",
            grace_seconds=1,
        )
        self._sshd.await_port(SSH_PORT, self.address)

    def sessions(self) -> list[psutil.Process]:
        """The sshd processes that serve a connection: a monitor as root, and one as the user that logged in."""
        processes = psutil.Process(self._sshd.pid).children(recursive=True)
        return [process for process in processes if process.name().startswith("sshd")]

    def close(self) -> None:
        """End sshd and all that was started through it."""
        self._sshd.close()
