"""What a sandbox keeps is its owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.errors import SandboxError
from orchestrator_sandbox.folders import private_folder, write_secret
from orchestrator_sandbox.processes.child import ChildProcess


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_closed_to_others_whether_new_or_not(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    assert mode(private_folder(tmp_path / "old")) == 0o700
    assert mode(private_folder(tmp_path / "new")) == 0o700
    assert mode(private_folder(tmp_path / "deep" / "er")) == 0o700


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_secret_and_a_log_are_closed_to_others_whatever_was_there(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "secret").write_text("old and open")
        write_secret(tmp_path / "secret", "new")
        with ChildProcess(["true"], name="true", log=tmp_path / "log") as child:
            child.wait(30)
    finally:
        os.umask(before)
    assert (tmp_path / "secret").read_text() == "new"
    assert mode(tmp_path / "secret") == 0o600
    assert mode(tmp_path / "log") == 0o600


def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SandboxError, match="belongs to another user: choose another folder"):
        private_folder(tmp_path / "theirs")
