"""A package index on loopback that asks for a login: pypiserver, with the packages that were uploaded and no others."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator_sandbox.folders import kept_secret, private_folder, write_secret
from orchestrator_sandbox.processes.child import ChildProcess, kept_port

# passlib, which reads the file of passwords, and the bcrypt of today do not get along.
_SERVE = "import sys; sys.modules['bcrypt'] = None; from pypiserver.__main__ import main; main(sys.argv[1:])"


class PackageIndexServer:
    """A pypiserver that wants a login for everything, and knows no other index by itself. A version is uploaded once.

    Its address names the host unlike those of the sandbox's other servers: a netrc file knows hosts only, and they are
    not to be shown its login.

    Args:
        directory: where packages, log and password are kept.
        user: the one user's name.
        password: default: one that is kept in the directory.
        beyond: the index where it sends whoever asks for packages that it does not have; default: nowhere.

    Attributes:
        url: its address for pip and uv.
        upload_url: where packages are uploaded to.
        packages: the folder that holds them.
        log: of its requests.

    Raises:
        SandboxError: it did not start.
    """

    def __init__(
        self, directory: Path, *, user: str = "team", password: str | None = None, beyond: str | None = None
    ) -> None:
        private_folder(directory)
        self.user = user
        self.password = password or kept_secret(directory / "password")
        self.packages = private_folder(directory / "packages")
        self.port = kept_port(directory / "port")
        self.upload_url = f"http://localhost:{self.port}/"
        self.url = f"{self.upload_url}simple"
        self.log = directory / "pypiserver.log"
        self._netrc = directory / "netrc"
        write_secret(self._netrc, f"machine localhost login {user} password {self.password}\n")
        passwords = directory / "htpasswd"
        digest = base64.b64encode(hashlib.sha1(self.password.encode(), usedforsecurity=False).digest()).decode()
        write_secret(passwords, f"{user}:{{SHA}}{digest}\n")
        self._server = ChildProcess(
            [
                *(sys.executable, "-c", _SERVE, "run", "-v", "-i", "127.0.0.1", "-p", str(self.port)),
                *(("--fallback-url", beyond) if beyond else ("--disable-fallback",)),
                *("--server", "wsgiref", "-P", str(passwords), "-a", "list,download,update"),
                str(self.packages),
            ],
            name="the package index",
            log=self.log,
        )
        try:
            self._server.await_http(f"http://127.0.0.1:{self.port}/health")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; the packages stay."""
        self._server.close()

    def env(self) -> dict[str, str]:
        """The settings that lead a training here."""
        return {
            "PRIVATE_INDEX_URL": self.url,
            "PRIVATE_INDEX_USER": self.user,
            "PRIVATE_INDEX_PASSWORD": self.password,
        }

    def publishing(self) -> Mapping[str, str]:
        """The variables that a build publishes with: the sample's `publish.sh` says what they are."""
        return {"UPLOAD_URL": self.upload_url, "INDEX_URL": self.url, "NETRC": str(self._netrc)}
