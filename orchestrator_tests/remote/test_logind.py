"""A login whose processes logind ends with it (KillUserProcesses): the training gets a scope of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator_tests.support.follower import Follower, of_training, supervisor_of
from orchestrator_tests.support.ssh_server import SshHost

pytestmark = pytest.mark.services

SYSTEMD_RUN = """#!/bin/sh
[ "$1 $2 $3 $4" = "--user --scope --quiet --" ] || exit 1
shift 4
IN_SCOPE=yes exec "$@"
"""


def install(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("loginctl", "systemd_run", "is_in_scope"),
    [
        ("echo KillUserProcesses=yes", SYSTEMD_RUN, True),
        ("echo KillUserProcesses=no", SYSTEMD_RUN, False),
        ("case $1 in enable-linger) exit 1 ;; *) echo KillUserProcesses=yes ;; esac", SYSTEMD_RUN, False),
        ("echo KillUserProcesses=yes", "#!/bin/sh\necho Failed to connect to bus >&2\nexit 1\n", False),
        ("echo KillUserProcesses=yes", "#!/bin/sh\nexec sleep 300\n", False),
        ("exec sleep 300", SYSTEMD_RUN, False),
        ("echo System has not been booted with systemd >&2; exit 1", SYSTEMD_RUN, False),
    ],
)
def test_a_training_outlives_a_login_whose_processes_are_ended(
    host: SshHost,
    follower: Follower,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loginctl: str,
    systemd_run: str,
    is_in_scope: bool,
) -> None:
    install(tmp_path / "bin", "loginctl", f"#!/bin/sh\n{loginctl}\n")
    install(tmp_path / "bin", "systemd-run", systemd_run)
    monkeypatch.setitem(host.environment, "PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert follower.start("sh", "-c", "echo ${IN_SCOPE-no}; exec sleep 300") is True
    assert follower.start("true") is False
    pid = supervisor_of(follower).pid
    assert os.getsid(pid) == pid
    stopped = follower.training.stop(grace_seconds=0)
    assert stopped is not None
    assert stopped.kind == "stopped"
    follower.follow()
    assert follower.text == ("yes\n" if is_in_scope else "no\n")
    assert not of_training(follower)
