"""A real package index with a login, and a package that is nowhere else; for tests of private packages."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator_sandbox.processes.child import ChildProcess, free_port

USER = "reader"
PASSWORD = "pw-#1:$horse'battery%40"  # what a file of netrc can hold, and a shell, an address or a format might not

PACKAGE = "greeting-of-acme"
MODULE = "greeting_of_acme"

# passlib, which reads the file of passwords, and the bcrypt of today do not get along.
_SERVE = "import sys; sys.modules['bcrypt'] = None; from pypiserver.__main__ import main; main(sys.argv[1:])"


class PackageIndex:
    """A pypiserver that wants a login for everything, and knows no other index.

    Attributes:
        url: its address for pip and uv. It names the host unlike the sandbox's MLflow does: see `index_variables`.
        log: of its requests.
    """

    def __init__(self, directory: Path) -> None:
        packages = directory / "packages"
        packages.mkdir(parents=True)
        wheel(packages)
        passwords = directory / "htpasswd"
        digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
        passwords.write_text(f"{USER}:{{SHA}}{digest}\n")
        self.packages = packages
        self.port = free_port()
        self.url = f"http://localhost:{self.port}/simple"
        self.log = directory / "pypiserver.log"
        self._server = ChildProcess(
            [
                *(sys.executable, "-c", _SERVE, "run", "-v", "-i", "127.0.0.1", "-p", str(self.port)),
                *("--server", "wsgiref", "--disable-fallback", "-P", str(passwords), "-a", "list,download,update"),
                str(packages),
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
        self._server.close()

    def handed_out(self) -> int:
        """How often it has handed the package out so far."""
        return sum(f"GET /packages/{MODULE}-" in line for line in self.log.read_text().splitlines())


def wheel(
    directory: Path, *, name: str = MODULE, version: str = "1.0", text: str = "WORDS = 'hello of acme'\n"
) -> Path:
    """Write a wheel with one module into a folder."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path
