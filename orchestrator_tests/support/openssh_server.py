"""OpenSSH's own sshd on a loopback port, for the user that runs the tests; for tests of `make test-services`."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

import psutil

from orchestrator.resources import retry
from orchestrator.resources.retry import SshPolicy
from orchestrator.resources.ssh import Ssh
from orchestrator.settings.groups import SshSettings
from orchestrator_sandbox.processes.child import free_port
from orchestrator_tests.support.waiting import until

KEY_KINDS = {"rsa": ["-b", "2048", "-m", "PEM"], "ed25519": [], "ecdsa": []}


class OpenSshServer:
    """An sshd on a loopback port, for the user that runs the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        for kind in KEY_KINDS:
            self.generate(f"host_{kind}", kind)
        self.keys = {kind: self.generate(f"login_{kind}", kind) for kind in KEY_KINDS}
        authorized = directory / "authorized_keys"
        authorized.write_text("".join(key.with_suffix(".pub").read_text() for key in self.keys.values()))
        self.port = free_port()
        self.config = directory / "sshd_config"
        self.config.write_text(
            "\n".join(
                [
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    *(f"HostKey {directory}/host_{kind}" for kind in KEY_KINDS),
                    f"AuthorizedKeysFile {authorized}",
                    f"PidFile {directory}/pid",
                    "UsePAM no",
                    "StrictModes no",
                    "PermitRootLogin prohibit-password",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                ]
            )
        )

    def __enter__(self) -> Self:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks up what is not logged in yet
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or "sshd"
        self._log = (self.directory / "log").open("wb")
        self._process = psutil.Popen([sshd, "-D", "-e", "-f", self.config], stderr=self._log)
        until(self._listens)
        return self

    def __exit__(self, *_: object) -> None:
        sessions = self._process.children(recursive=True)
        self._process.terminate()
        self._process.wait(60)
        for process in sessions:
            if process.is_running() and process.name() == "sshd":
                process.kill()
        self._log.close()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def generate(self, name: str, kind: str) -> Path:
        path = self.directory / name
        command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path), *KEY_KINDS[kind]]
        subprocess.run(command, check=True)
        return path

    def connection(
        self,
        *,
        kind: str = "ed25519",
        host: str = "ed25519",
        key_path: Path | None = None,
        policy: SshPolicy = retry.SSH,
    ) -> Ssh:
        settings = SshSettings(user=self.user, port=self.port, key_path=key_path or self.keys[kind])
        host_key = (self.directory / f"host_{host}.pub").read_text()
        return Ssh(settings, address="127.0.0.1", host_key=host_key, policy=policy)

    def session_processes(self) -> list[psutil.Process]:
        """The sshd processes that serve a connection each."""
        return [process for process in self._process.children(recursive=True) if process.name() == "sshd"]
