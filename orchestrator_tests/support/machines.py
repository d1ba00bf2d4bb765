"""Sandbox machines without an EC2 API, booted and logged into; for their tests (sandbox/ec2)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import yaml

from orchestrator_sandbox.ec2.host_config import HostConfig
from orchestrator_sandbox.ec2.machine import Ending, Machine
from orchestrator_sandbox.processes.child import free_port

ADDRESS = "127.78.0.2"
LOGIN_KEY = paramiko.RSAKey.generate(2048)


@dataclass(frozen=True)
class Booted:
    """A machine and what it reported."""

    machine: Machine
    ups: queue.Queue[bool]
    endings: queue.Queue[Ending]

    def wait_until_up(self) -> None:
        assert self.ups.get(timeout=60), self.machine.log.read_text()

    def connect(self, user: str = "ubuntu", key: paramiko.PKey = LOGIN_KEY) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.MissingHostKeyPolicy())
        config = self.machine.config
        client.connect(config.address, config.port, user, pkey=key, allow_agent=False, look_for_keys=False, timeout=60)
        return client


@dataclass(frozen=True)
class Done:
    """What a command left."""

    status: int
    stdout: bytes
    stderr: bytes = field(default=b"")


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"") -> Done:
    """Run a command to its end."""
    transport = client.get_transport()
    assert transport is not None
    with transport.open_session() as channel:
        channel.exec_command(command)

        def feed() -> None:
            with suppress(OSError):  # the command may have ended already
                channel.sendall(stdin)
                channel.shutdown_write()

        feeder = threading.Thread(target=feed)
        feeder.start()
        stdout, stderr = channel.makefile("rb").read(), channel.makefile_stderr("rb").read()
        feeder.join()
        return Done(channel.recv_exit_status(), stdout, stderr)


def config_of(directory: Path, user_data: object = "") -> HostConfig:
    text = user_data if isinstance(user_data, str) else "#cloud-config\n" + yaml.safe_dump(user_data)
    return HostConfig(
        instance_id=directory.name,
        directory=directory,
        scratch=directory / "tmp",
        address=ADDRESS,
        port=free_port(ADDRESS),
        user_data=text,
        authorized_key=f"ssh-rsa {LOGIN_KEY.get_base64()}",
    )


@contextmanager
def booting(directory: Path, user_data: object = "") -> Iterator[Booted]:
    ups: queue.Queue[bool] = queue.Queue()
    endings: queue.Queue[Ending] = queue.Queue()
    machine = Machine(config_of(directory, user_data), on_up=lambda: ups.put(True), on_off=endings.put)
    try:
        yield Booted(machine, ups, endings)
    finally:
        machine.power_off()
        machine.join()


def host_key(client: paramiko.SSHClient) -> str:
    transport = client.get_transport()
    assert transport is not None
    key = transport.get_remote_server_key()
    return f"{key.get_name()} {key.get_base64()}"
