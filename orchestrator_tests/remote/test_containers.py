"""Containers end with their training, and files of a job are where Docker can read them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.names import CONTAINER_LABEL
from orchestrator.remote.job import Argument, InDirectory, JobFile, can_be_given, job_file
from orchestrator.remote.training import RemoteTraining
from orchestrator_sandbox.docker_engine import DockerEngine
from orchestrator_tests.support.containers import PYTHON, docker_run
from orchestrator_tests.support.follower import Follower, of_training, supervisor_of
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

IGNORES_TERM = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
    "print('begun', flush=True); signal.alarm(600)\nwhile True: signal.pause()"
)


class Boxed(Follower):
    """A training in a container."""

    def __init__(self, host: SshHost, engine: DockerEngine) -> None:
        super().__init__(host)
        self.host = host
        self.engine = engine
        self.label = f"{CONTAINER_LABEL}={self.run_id}"

    def begin(self, script: str = IGNORES_TERM, *, seconds: float = 300, options: tuple[str, ...] = ()) -> None:
        argv = docker_run(PYTHON, "-c", script, label=self.label, options=options)
        self.start(*argv, seconds=seconds, DOCKER_HOST=self.engine.host)

    def containers(self) -> list[str]:
        return self.engine.containers(self.label)


@pytest.fixture
def boxed(host: SshHost, docker_engine: DockerEngine) -> Iterator[Boxed]:
    boxed = Boxed(host, docker_engine)
    yield boxed
    for container in boxed.containers():
        docker_engine.run("rm", "--force", container)
    boxed.ssh.close()


@pytest.mark.services
@pytest.mark.parametrize("options", [(), ("--init",)])
def test_the_deadline_leaves_no_container(boxed: Boxed, options: tuple[str, ...]) -> None:
    boxed.begin(seconds=12, options=options)
    assert boxed.follow().kind == "deadline"
    assert boxed.text.startswith("begun\n")
    assert not boxed.containers()
    assert not of_training(boxed)


@pytest.mark.services
def test_a_script_that_does_not_know_the_signal_ends_by_it_and_says_what_it_had_to_say(boxed: Boxed) -> None:
    script = "import signal; print('begun', flush=True); signal.alarm(600); signal.pause()"
    boxed.begin(script, options=("--init",))
    following = boxed.following()
    until(lambda: boxed.text == "begun\n")
    with Follower(boxed.host, run_id=boxed.run_id).ssh as ssh:
        RemoteTraining(ssh, boxed.run_id).stop(grace_seconds=30)
    assert following.result().status == 143
    assert not boxed.containers()


@pytest.mark.services
def test_stop_leaves_no_container_of_this_training_and_spares_those_of_others(host: SshHost, boxed: Boxed) -> None:
    other = Boxed(host, boxed.engine)
    for training in (boxed, other):
        training.begin()
    following = [training.following() for training in (boxed, other)]
    until(lambda: boxed.text == other.text == "begun\n")
    with Follower(host, run_id=boxed.run_id).ssh as ssh:
        ended = RemoteTraining(ssh, boxed.run_id).stop(grace_seconds=1)
    assert ended is not None
    assert ended.kind == "stopped"
    assert not boxed.containers()
    assert len(other.containers()) == 1
    with Follower(host, run_id=other.run_id).ssh as ssh:
        RemoteTraining(ssh, other.run_id).stop(grace_seconds=0)
    assert [future.result().kind for future in following] == ["stopped", "stopped"]


@pytest.mark.services
def test_a_killed_client_leaves_no_container_behind_the_exit_of_its_training(boxed: Boxed) -> None:
    boxed.begin()
    following = boxed.following()
    until(lambda: boxed.text == "begun\n")
    for process in of_training(boxed):
        process.kill()
    assert following.result().status == 9
    assert not boxed.containers()


@pytest.mark.services
def test_a_killed_supervisor_s_container_can_still_be_stopped(host: SshHost, boxed: Boxed) -> None:
    boxed.begin()
    following = boxed.following()
    until(lambda: boxed.text == "begun\n")
    supervisor_of(boxed).kill()
    assert following.result().kind == "lost"
    assert len(boxed.containers()) == 1
    boxed.training.stop(grace_seconds=0)
    assert not boxed.containers()


@pytest.mark.services
def test_a_docker_that_does_not_answer_delays_the_end_by_a_bounded_time(
    host: SshHost, follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexec sleep 600\n")
    docker.chmod(0o755)
    monkeypatch.setitem(host.environment, "PATH", f"{tmp_path}:{host.environment['PATH']}")
    follower.start("sh", "-c", "echo ready; sleep 300")
    following = follower.following()
    until(lambda: follower.text)
    with Follower(host, run_id=follower.run_id).ssh as ssh:
        ended = RemoteTraining(ssh, follower.run_id).stop(grace_seconds=0)
    assert ended is not None
    assert ended.kind == "stopped"
    assert following.result() == ended


# ---- files of a job


def show(name: str) -> list[Argument]:
    """As MLflow does it: bash reads the argument."""
    return ["sh", "-c", 'exec bash -c "cat $1"', "sh", InDirectory(("", name))]


def start_job(follower: Follower, command: Sequence[Argument], *, files: Sequence[JobFile]) -> None:
    deadline = datetime.now(UTC) + timedelta(minutes=5)
    follower.training.start(command, environment={}, deadline=deadline, files=files)


@pytest.mark.parametrize("odd", ["home", "my $(id) home", 'it\'s "home"', "a;b"])
def test_files_of_a_job_are_found_in_whatever_home(tmp_path: Path, odd: str) -> None:
    (tmp_path / odd).mkdir()
    text = "A\nB'$(id)\n"
    with SshHost(tmp_path / odd) as host:
        follower = Follower(host)
        with follower.ssh:
            files = [JobFile("docker.env", text, variable="WHERE")]
            start_job(follower, show("docker.env"), files=files)
            assert follower.follow().succeeded
            assert follower.text == text
            again = Follower(host, ssh=follower.ssh)
            start_job(again, ["sh", "-c", 'cat "$WHERE"; stat -c %a "$WHERE"'], files=files)
            again.follow()
            assert again.text == f"{text}644\n"


def test_a_secret_file_of_a_job_is_for_its_login_only(follower: Follower) -> None:
    files = [JobFile("client.pem", "KEY\n", variable="WHERE", secret=True), JobFile("docker.env", "A\n")]
    start_job(follower, ["sh", "-c", 'cat "$WHERE"; stat -c %a "$WHERE"'], files=files)
    assert follower.follow().succeeded
    assert follower.text == "KEY\n600\n"


def test_a_docker_that_is_a_snap_finds_them_where_it_may_look(
    host: SshHost, follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "snap" / "bin" / "docker"
    docker.parent.mkdir(parents=True)
    shutil.copy("/bin/true", docker)
    monkeypatch.setitem(host.environment, "PATH", f"{docker.parent}:{host.environment['PATH']}")
    start_job(follower, ["echo", InDirectory(("", "docker.env"))], files=[JobFile("docker.env", "A\n")])
    follower.follow()
    place = Path(follower.text.strip())
    assert place.read_text() == "A\n"
    assert not any(part.startswith(".") for part in place.relative_to(host.home).parts)


texts = st.text(st.characters() | st.sampled_from("\0'\"$`\\\n ={}\ud800"), max_size=8)


@given(before=texts, after=texts, text=texts)
def test_a_shell_reads_any_argument_and_file_of_a_job_as_they_are(before: str, after: str, text: str) -> None:
    argument = InDirectory((before, after))
    files = [JobFile("x", text, variable="V")]
    if not all(map(can_be_given, (before, after, text))):
        with pytest.raises(ValueError, match="NUL"):
            job_file(["p", argument], {}, files)
        return
    job = job_file(["p", argument], {}, files)
    functions = b"directory=/d/\nplace() { printf '%s\\0' \"$@\"; }\nrun() { printf '%s\\0' \"$@\"; }\n"
    done = subprocess.run(["sh"], input=functions + job, capture_output=True, check=True, timeout=60)
    expected = ["x", text, "V", "644", "p", f"{before}/d/{after}"]
    assert done.stdout.decode(errors="surrogateescape").split("\0")[:-1] == expected


def test_a_file_s_variable_is_checked_like_any_other() -> None:
    with pytest.raises(ValueError, match="cannot be the name of a variable"):
        job_file(["p"], {}, [JobFile("x", "", variable="A B")])
