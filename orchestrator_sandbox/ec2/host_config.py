"""The configuration of a machine's host process, and what its exit status means; for `machine.py` and `host.py`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator_sandbox.folders import write_secret

ENDED_BY_ITSELF = 0
REBOOT = 100

# How a private certificate authority is found. Of our environment, nothing else reaches a machine.
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")


@dataclass(frozen=True)
class HostConfig:
    """One machine, as its host process gets to know it.

    Attributes:
        instance_id: the EC2 instance that it is.
        directory: everything of this machine: home directories, scripts, logs.
        scratch: its `/tmp`; a short path, since Unix sockets in it may have 107 characters only.
        address: the loopback address that its SSH server listens on.
        port: the port of that server.
        user_data: what cloud-init reads; "" without any.
        authorized_key: public key of the EC2 key pair in OpenSSH format; None: nobody can log in.
    """

    instance_id: str
    directory: Path
    scratch: Path
    address: str
    port: int
    user_data: str
    authorized_key: str | None

    @property
    def control(self) -> Path:
        """The FIFO on which the machine's programs and the sandbox tell the host what to do."""
        return self.directory / "control"

    def write(self) -> Path:
        """Write it, with the private host key that the user-data may hold, to a file of mode 0600."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "host.json"
        write_secret(path, json.dumps(dataclasses.asdict(self), default=str))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        values = json.loads(path.read_text())
        return cls(**values | {"directory": Path(values["directory"]), "scratch": Path(values["scratch"])})
