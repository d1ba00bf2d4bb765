"""Nothing is installed whose hash the lock does not have: not what installs, nor what builds the package itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_tests.support.dockerfile import PROJECT, copy_into, install_command
from orchestrator_tests.support.installation import Installation, find_uv

pytestmark = pytest.mark.packaging


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_uv_comes_with_the_hash_of_the_lock(file: str, tmp_path: Path) -> None:
    text = (PROJECT / file).read_text().replace("$$", "$")
    (expression,) = re.findall(r"sed -n '([^']+)' requirements\.lock", text)
    asked = subprocess.run(
        ["sed", "-n", expression, "requirements.lock"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    requirement, *hashes = asked.split("--hash=")
    assert re.fullmatch(r"uv==\S+ \\\s+", requirement)
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}(\s\\)?\s+", each) for each in hashes)
    changed = tmp_path / "uv.txt"
    changed.write_text(re.sub("sha256:......", "sha256:000000", asked))
    pip = [sys.executable, "-m", "venv", str(tmp_path / "venv")]
    subprocess.run(pip, check=True)
    install = [str(tmp_path / "venv/bin/pip"), "install", "--require-hashes", "--requirement", str(changed)]
    refused = subprocess.run(install, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr


@pytest.mark.parametrize("builder", ["hatchling", "editables"])
def test_what_builds_the_package_is_refused_with_another_hash(builder: str, tmp_path: Path) -> None:
    files = tmp_path / "opt"
    files.mkdir()
    copy_into(files)
    lock = files / "requirements.lock"
    (pinned,) = re.findall(rf"^{builder}==(?:.*\\\n)+.*\n", lock.read_text(), re.MULTILINE)
    lock.write_text(lock.read_text().replace(pinned, re.sub("sha256:......", "sha256:000000", pinned)))
    installation = Installation(tmp_path)
    command = [find_uv(), *install_command(installation.python), "--no-deps"]
    refused = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert f"Hash mismatch for `{builder}" in refused.stderr
