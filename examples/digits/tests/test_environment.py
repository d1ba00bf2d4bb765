"""A training finds what the package needs, and the wheel of its own commit."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]


def test_the_training_s_environment_is_what_the_package_asks_for() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((PROJECT / "python_env.yaml").read_text())
    assert environment["dependencies"] == project["dependencies"] + project["optional-dependencies"]["training"]


def test_the_version_names_the_commit_and_what_differs_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def version() -> str:
        program = [sys.executable, str(file)]
        return subprocess.run(program, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a Git that runs these tests in a hook
        monkeypatch.delenv(name, raising=False)
    file = Path(shutil.copy(PROJECT / "version.py", tmp_path))
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "First")
    release, _, commit = version().partition("+g")
    assert release.count(".") == 2
    assert git("rev-parse", "HEAD").startswith(commit)
    file.write_text(file.read_text() + "# changed\n")
    assert version() == f"{release}+g{commit}.changed"
