"""A training with a login of its own reaches nothing of its supervisor; without one or sudo, it runs as ever."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import SettingsError
from orchestrator.settings.groups import MachineSettings
from orchestrator.settings.source import PipelineSettings, SettingsSource
from orchestrator_tests.support.environment import COMPLETE
from orchestrator_tests.support.follower import Follower, of_training, shell
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services

UID = 54321
"""Of nobody else on this machine: `stop` ends all processes of it."""

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user without sudo")

ID = f"""#!/bin/sh
[ "$1 $2" != "-u trainer" ] || {{ echo {UID}; exit; }}
[ "$1 $2" != "-u nobody2" ] || exit 1
exec /usr/bin/id "$@"
"""
SUDO = f"""#!/bin/sh
# as `sudo -n [-H] -u trainer PROGRAM ARGUMENT...`
shift
[ "$1" != -H ] || shift
[ "$1 $2" = "-u trainer" ] || exit 1
shift 2
cd / || exit
exec setpriv --reuid={UID} --regid={UID} --clear-groups env -i HOME=HOME_OF_TRAINER PATH="$PATH" SHELL=/bin/sh "$@"
"""


@pytest.fixture
def trainer(host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The host has a user `trainer`, whom its login can become; yields that one's home."""
    home = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    os.chown(home, UID, UID)
    for name, text in {"id": ID, "sudo": SUDO.replace("HOME_OF_TRAINER", str(home))}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setitem(host.environment, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield home
    shutil.rmtree(home)


def start(follower: Follower, *argv: str, user: str = "trainer", seconds: float = 60, **environment: str) -> None:
    follower.start(*argv, seconds=seconds, user=user, **environment)


@only_root
def test_the_training_is_its_own_user_and_gets_all_that_it_needs(follower: Follower, trainer: Path) -> None:
    start(
        follower,
        *shell('/usr/bin/id -u; pwd; printf \'%s|\' "$A" "$@"; ls "$ORCHESTRATOR_TRAINING"hooks; exit 7'),
        A="END_\n$(touch pwned)'",
    )
    outcome = follower.follow()
    assert (outcome.kind, outcome.status) == ("exited", 7)
    modules = ("checkout.py", "load_model.py", "model_check.py", "pipes.bash", "preflight.py")
    hooks = "".join(f"{name}\n" for name in (*modules, "sitecustomize.py", "system_metrics.py"))
    assert follower.text == f"{UID}\n{trainer}\nEND_\n$(touch pwned)'|{hooks}"
    assert not list(trainer.rglob("job*")), "no file with its secrets is left"
    assert not list(follower.directory.glob("job*"))


@only_root
def test_it_reaches_nothing_of_its_supervisor(follower: Follower, trainer: Path) -> None:
    directory = follower.directory
    attack = (
        f"kill -STOP $(readlink {directory}/pid | cut -d' ' -f1) && echo stopped",
        f"ln -s 'exited 0 1' {directory}/exit && echo planted",
        f"rm {directory}/pid && echo removed; cat {directory}/log && echo read; sleep 300",
    )
    start(follower, *shell(*attack), seconds=2)
    outcome = follower.follow()
    assert outcome.kind == "deadline"
    assert not {"stopped", "planted", "removed", "read"} & set(follower.text.split())
    until(lambda: not of_user())


@only_root
def test_it_can_be_stopped_with_all_that_it_started(host: SshHost, follower: Follower, trainer: Path) -> None:
    start(
        follower, *shell("trap '' TERM", "setsid env -i sleep 300 &", "sleep 300 & echo ready; wait; wait; sleep 300")
    )
    following = follower.following()
    until(lambda: follower.text == "ready\n" and len(of_user()) >= 3)
    with Follower(host, run_id=follower.run_id).ssh as ssh:
        outcome = type(follower.training)(ssh, follower.run_id).stop(grace_seconds=1)
    assert outcome is not None
    assert outcome.kind == "stopped"
    assert following.result() == outcome
    until(lambda: not of_user())


def of_user() -> list[int]:
    """The processes of the training's user."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if path.exists() and path.stat().st_uid == UID]


@pytest.mark.parametrize("user", ["nobody2", "trainer"], ids=["no such user", "no sudo"])
def test_without_such_a_user_or_sudo_it_runs_as_the_login_and_says_so_once(
    follower: Follower, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    start(follower, "sh", "-c", "id -u", user=user)
    start(follower, "sh", "-c", "id -u", user=user)
    assert follower.follow().succeeded
    assert follower.text == f"{os.getuid()}\n"
    warnings = [record.getMessage() for record in caplog.records if "TRAINING_USER" in record.getMessage()]
    assert len(warnings) == 1
    assert f"the instance has no user TRAINING_USER={user}" in warnings[0]


def test_the_training_has_no_way_to_more_rights(follower: Follower) -> None:
    assert shutil.which("setpriv"), "it comes with util-linux"
    follower.start("sh", "-c", "grep NoNewPrivs /proc/self/status")
    follower.follow()
    assert follower.text.split() == ["NoNewPrivs:", "1"]
    assert not of_training(follower)


def test_but_docker_of_snap_needs_them(
    host: SshHost, follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "snap" / "bin" / "docker"
    docker.parent.mkdir(parents=True)
    docker.write_text("#!/bin/sh\n")
    docker.chmod(0o755)
    monkeypatch.setitem(host.environment, "PATH", f"{docker.parent}:{os.environ['PATH']}")
    follower.start("sh", "-c", "grep NoNewPrivs /proc/self/status")
    follower.follow()
    assert follower.text.split() == ["NoNewPrivs:", "0"]


@pytest.mark.parametrize("name", ["job", "directory", "place", "child", "status", "wider", "how"])
def test_no_variable_of_the_training_leaves_its_secrets_on_disk(follower: Follower, tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    environment = {name: str(kept), "SECRET": "hunter22"}
    deadline = datetime.now(UTC) + timedelta(minutes=1)
    follower.training.start(["sh", "-c", f'printf %s "${name}"'], environment=environment, deadline=deadline)
    assert follower.follow().succeeded
    assert follower.text == str(kept)
    assert kept.exists()
    assert not list(follower.directory.glob("job*"))


# ---- The setting


@pytest.mark.parametrize("name", ["root", "Trainer", "1trainer", "a b", "a;b", "-x", "ä", "x" * 33, "trainer$"])
def test_a_name_that_is_no_users_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="TRAINING_USER="):
        SettingsSource(lookup={**COMPLETE, "TRAINING_USER": name}.get).read(MachineSettings)


def test_the_login_itself_is_refused() -> None:
    with pytest.raises(SettingsError, match="TRAINING_USER=ubuntu is SSH_USER"):
        PipelineSettings.read(SettingsSource(lookup={**COMPLETE, "TRAINING_USER": "ubuntu"}.get))
    read = PipelineSettings.read(SettingsSource(lookup={**COMPLETE, "TRAINING_USER": "trainer"}.get))
    assert read.machine.training_user == "trainer"
