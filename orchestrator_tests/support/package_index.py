"""A real package index with a login, and a package that is nowhere else; for tests of private packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

from orchestrator_sandbox.folders import private_folder
from orchestrator_sandbox.package_index import PackageIndexServer

USER = "reader"
PASSWORD = "pw-#1:$horse'battery%40"  # what a file of netrc can hold, and a shell, an address or a format might not

PACKAGE = "greeting-of-acme"
MODULE = "greeting_of_acme"


class PackageIndex(PackageIndexServer):
    """The sandbox's index, with the package in it."""

    def __init__(self, directory: Path, *, beyond: str | None = None) -> None:
        wheel(private_folder(directory / "packages"))
        super().__init__(directory, user=USER, password=PASSWORD, beyond=beyond)

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
