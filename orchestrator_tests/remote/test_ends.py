"""How a training ends, is stopped, and is started once only, however often it is asked for."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.remote import TrainingExit
from orchestrator.remote.training import RemoteTraining
from orchestrator_tests.support.follower import GATED, Follower, of_session, of_training, shell, supervisor_of
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until


@pytest.mark.parametrize("status", [0, 1, 126, 200, 255])
def test_the_exit_status_is_told(follower: Follower, status: int) -> None:
    follower.start("sh", "-c", f"exit {status}")
    outcome = follower.follow()
    assert (outcome.kind, outcome.status, outcome.succeeded) == ("exited", status, status == 0)
    assert outcome.finished is not None
    assert abs(outcome.finished - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_told_from_an_exit(follower: Follower, number: signal.Signals) -> None:
    follower.start("sh", "-c", f"kill -{number.value} $$")
    outcome = follower.follow()
    assert (outcome.kind, outcome.status) == ("signaled", number)


FAMILY = shell(
    "trap '' TERM",  # a child inherits this
    f"{shlex.quote(sys.executable)} -c 'import os, signal; os.setsid(); signal.alarm(300); signal.pause()' &",
    "env -i sleep 300 &",
    "(sleep 300; echo never) &",
    "echo ready",
    "wait; wait; wait; sleep 300",
)


def test_the_deadline_ends_the_training_and_all_that_it_started(follower: Follower) -> None:
    follower.start(*shell("trap 'echo asked; exit 0' TERM", "sleep 300 & wait"), seconds=1)
    outcome = follower.follow()
    assert outcome.kind == "deadline"
    assert follower.text == "asked\n"
    assert not of_training(follower)


def test_stop_ends_even_what_ignores_it_or_has_a_session_of_its_own(host: SshHost, follower: Follower) -> None:
    follower.start(*FAMILY)
    following = follower.following()
    until(lambda: follower.text == "ready\n" and len(of_training(follower)) >= 4)
    assert len(of_session(follower)) >= 4
    with Follower(host, run_id=follower.run_id).ssh as ssh:
        outcome = RemoteTraining(ssh, follower.run_id).stop(grace_seconds=1)
    assert outcome is not None
    assert outcome.kind == "stopped"
    assert not of_training(follower)
    assert not of_session(follower)
    assert following.result() == outcome


@pytest.mark.parametrize("missing", [{"setsid"}, {"setsid", "python3"}])
def test_an_instance_without_setsid_does_with_what_it_has(
    host: SshHost, follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: set[str]
) -> None:
    needed = {*("sh", "setsid", "python3", "mkdir", "cat", "wc", "mv", "ln", "rm", "readlink", "date")}
    needed |= {"sleep", "stat", "tail", "head", "grep"}
    for name in needed - missing:
        (tmp_path / name).symlink_to(sys.executable if name == "python3" else shutil.which(name) or name)
    monkeypatch.setitem(host.environment, "PATH", str(tmp_path))
    follower.start("sh", "-c", "echo ready; sleep 300 & wait")
    following = follower.following()
    until(lambda: follower.text)
    with Follower(host, run_id=follower.run_id).ssh as ssh:
        outcome = RemoteTraining(ssh, follower.run_id).stop(grace_seconds=1)
    assert outcome is not None
    assert outcome.kind == "stopped"
    assert following.result() == outcome
    assert not of_training(follower)


def test_stop_without_a_start_and_after_the_end_changes_nothing(follower: Follower) -> None:
    assert follower.training.stop() is None
    follower.start("true")
    ended = follower.follow()
    assert follower.training.stop() == ended


def test_a_killed_supervisor_is_told_as_lost_and_its_training_can_still_be_stopped(follower: Follower) -> None:
    follower.start("sh", "-c", "echo ready; sleep 300")
    following = follower.following()
    until(lambda: follower.text)
    supervisor_of(follower).kill()
    assert following.result() == TrainingExit("lost")
    assert of_training(follower)
    outcome = follower.training.stop(grace_seconds=1)
    assert outcome is not None
    assert outcome.kind == "stopped"
    assert not of_training(follower)


def test_what_was_never_started_is_lost_when_followed(follower: Follower) -> None:
    assert follower.training.state() == "absent"
    assert follower.follow() == TrainingExit("lost")


@pytest.mark.parametrize(
    ("training_exit", "sentence"),
    [
        (TrainingExit("exited", 1), "the training exited with status 1"),
        (TrainingExit("signaled", 9), "the training was killed by signal 9 (SIGKILL): out of memory?"),
        (TrainingExit("signaled", 99), "the training was killed by signal 99"),
        (TrainingExit("deadline", 143), "MAX_TRAINING_MINUTES"),
        (TrainingExit("stopped", 143), "stopped on request"),
        (TrainingExit("lost"), "vanished without an exit status"),
    ],
)
def test_an_exit_is_described_in_a_sentence(training_exit: TrainingExit, sentence: str) -> None:
    assert sentence in training_exit.describe()


# Starting twice


def test_started_twice_it_runs_once(host: SshHost, follower: Follower, gate: Gate) -> None:
    again = Follower(host, run_id=follower.run_id)
    with again.ssh:
        assert follower.start(*GATED, GATE=str(gate)) is True
        assert follower.training.state() == "running"
        assert again.start(*GATED, GATE=str(gate)) is False
        gate.open()
        assert follower.follow() == again.follow()
    assert follower.text == again.text == "before\nafter\n"
    assert follower.training.state() == follower.follow()
    assert not list(follower.directory.glob("job*"))


def test_started_by_several_at_once_it_runs_once(host: SshHost) -> None:
    run_id = uuid.uuid4().hex
    rivals = [Follower(host, run_id=run_id) for _ in range(3)]
    started: list[bool] = []
    threads = [
        threading.Thread(target=lambda rival=rival: started.append(rival.start("sh", "-c", "echo once")))
        for rival in rivals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started) == [False, False, True]
    assert rivals[0].follow().succeeded
    assert rivals[0].text == "once\n"
    for rival in rivals:
        rival.ssh.close()
