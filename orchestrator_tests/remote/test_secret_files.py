"""The secret files of a training are gone when it has ended, however it ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.remote.job import JobFile
from orchestrator_tests.support.follower import Follower, of_training, supervisor_of
from orchestrator_tests.support.waiting import until

FILES = [JobFile("netrc", "password of the index\n", variable="NETRC", secret=True), JobFile("docker.env", "NETRC\n")]
WAIT = 'ls -l "$NETRC" | cut -c 1-10; cat "$NETRC"; sleep 300 & wait'


def start(follower: Follower, command: str = WAIT, *, seconds: float = 60) -> Path:
    follower.training.start(
        ["sh", "-c", command], environment={}, deadline=datetime.now(UTC) + timedelta(seconds=seconds), files=FILES
    )
    return follower.directory / "netrc"


@pytest.mark.parametrize("end", ["exit 0", "exit 3", "kill -9 $$", "kill -15 $$"])
def test_secret_files_are_gone_when_the_training_has_ended(follower: Follower, end: str) -> None:
    netrc = start(follower, f'ls -l "$NETRC" | cut -c 1-10; {end}')
    follower.follow()
    assert follower.text == "-rw-------\n"
    assert not netrc.exists()
    assert (follower.directory / "docker.env").exists()


def test_secret_files_are_gone_when_the_deadline_ends_the_training(follower: Follower) -> None:
    netrc = start(follower, seconds=1)
    assert follower.follow().kind == "deadline"
    assert follower.text == "-rw-------\npassword of the index\n"
    assert not netrc.exists()


def test_secret_files_are_gone_when_the_training_is_stopped(follower: Follower) -> None:
    netrc = start(follower)
    until(netrc.exists)
    follower.training.stop(grace_seconds=0)
    assert not netrc.exists()


def test_secret_files_outlive_a_killed_supervisor_for_as_long_as_its_training_does(follower: Follower) -> None:
    netrc = start(follower)
    following = follower.following()
    until(lambda: "password" in follower.text)
    supervisor_of(follower).kill()
    assert following.result().kind == "lost"
    assert netrc.exists()
    for process in of_training(follower):
        process.kill()
    until(lambda: not netrc.exists())
