"""An environment of its own, into which is installed what users get: nothing of the sandbox, nothing of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator_tests.support.dockerfile import PROJECT


def find_uv() -> str:
    """That of the environment variable UV, of the path, or of `make`."""
    return str(PROJECT / (os.environ.get("UV") or shutil.which("uv") or ".venv/bootstrap/bin/uv"))


def uv(*words: str, cwd: Path = PROJECT) -> None:
    """Run uv to a good end."""
    done = subprocess.run([find_uv(), *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Installation:
    """A virtual environment in a folder.

    Attributes:
        python: its interpreter.
        directory: an empty folder elsewhere, to run programs in.
    """

    def __init__(self, directory: Path) -> None:
        uv("venv", "--quiet", "--python", sys.executable, str(directory / "venv"))
        self._bin = directory / "venv" / "bin"
        self.python = self._bin / "python"
        self.directory = directory / "elsewhere"
        self.directory.mkdir()

    def program(self, name: str) -> str:
        """The path of an installed program."""
        return str(self._bin / name)

    def environment(self, **settings: str) -> dict[str, str]:
        """These settings, and nothing of the tests' own that could lead back into this checkout."""
        home = str(self.directory)
        return {"PATH": os.environ["PATH"], "HOME": home, "DAGSTER_HOME": f"{home}/dagster", **settings}

    def run(
        self, words: Sequence[str], *, settings: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        environment = self.environment(**(settings or {}))
        return subprocess.run(words, cwd=self.directory, env=environment, capture_output=True, text=True, check=False)
