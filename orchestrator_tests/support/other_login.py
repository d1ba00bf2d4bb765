"""The login `ubuntu` on this machine, with mlflow in ~/.local/bin as on an image; for loop/test_other_systems."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

LOGIN = "ubuntu"
MARK = "# made by orchestrator_tests\n"


class Login:
    """The user, made if there is none, who can run `mlflow` and `python` after a login.

    Args:
        directory: for what the user may read, with no directory above it closed to others.
    """

    def __init__(self, directory: Path) -> None:
        if os.getuid() != 0:
            pytest.fail(f"these tests need root, to make the login {LOGIN} and to listen on port 22")
        self._directory = directory
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with self._exits:
            try:
                account = pwd.getpwnam(LOGIN)
            except KeyError:
                subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", LOGIN], check=True)
                self._exits.callback(subprocess.run, ["userdel", "--remove", LOGIN], check=True, capture_output=True)
                account = pwd.getpwnam(LOGIN)
            self.home = Path(account.pw_dir)
            self._cache = self._directory / "bytecode"
            self._cache.mkdir()
            shutil.chown(self._cache, LOGIN, LOGIN)
            self._put("python", "")
            mlflow = self._put("mlflow", " -m mlflow")
            asked = subprocess.run(
                ["runuser", "-u", LOGIN, "--", str(mlflow), "--version"], cwd="/", capture_output=True, text=True
            )
            if asked.returncode:
                pytest.fail(f"the login {LOGIN} cannot run the mlflow of {sys.prefix}:\n{asked.stdout}{asked.stderr}")
            self._exits = self._exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def forget(self, run_id: str) -> None:
        """Remove the directory of one training, as a terminated instance takes its disk with it."""
        shutil.rmtree(self.home / ".orchestrator" / run_id, ignore_errors=True)
        with contextlib.suppress(OSError):  # others' trainings, or none
            (self.home / ".orchestrator").rmdir()

    def _put(self, name: str, arguments: str) -> Path:
        program = self.home / ".local" / "bin" / name
        if program.exists() and MARK not in program.read_text():
            pytest.fail(f"{program} is there already, and not ours: remove it for these tests")
        for folder in (program.parent.parent, program.parent):
            if not folder.exists():
                folder.mkdir()
                shutil.chown(folder, LOGIN, LOGIN)
        base = self._reachable(Path(sys.base_prefix), ["bin", "lib"])
        packages = self._reachable(Path(sysconfig.get_path("purelib")), None)
        python = f"{base}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        program.write_text(
            f"#!/bin/sh\n{MARK}export LD_LIBRARY_PATH='{base}/lib' PYTHONPATH='{packages}'\n"
            f"export PYTHONPYCACHEPREFIX='{self._cache}' MLFLOW_DISABLE_TELEMETRY=true\n"
            f"exec '{python}'{arguments} \"$@\"\n"
        )
        program.chmod(0o755)
        self._exits.callback(program.unlink)
        return program

    def _reachable(self, place: Path, wanted: list[str] | None) -> Path:
        """The folder itself if others may enter it, else hard links to what it holds, where they may."""
        place = place.resolve()
        if all(parent.stat().st_mode & 0o001 for parent in (place, *place.parents)):
            return place
        copy = self._directory / place.name
        if not copy.exists():
            for name in wanted or ["."]:
                shutil.copytree(
                    place / name,
                    copy / name,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__", *(["site-packages", "test"] if wanted else [])),
                    copy_function=_link,
                )
        return copy


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
