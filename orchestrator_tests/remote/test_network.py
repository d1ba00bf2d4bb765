"""A training is followed over connections that break, hang and lie."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator.errors import HostKeyMismatch, InstanceLost, SshError, SshRefused
from orchestrator.resources import retry
from orchestrator.resources.ssh import Ssh
from orchestrator_tests.support.follower import GATED, QUICK, Follower, connection_log
from orchestrator_tests.support.gate import Gate
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

pytestmark = pytest.mark.services


def logged(caplog: pytest.LogCaptureFixture, lines: int) -> bool:
    return len(connection_log(caplog)) == lines


def test_a_connection_cut_in_mid_training_changes_nothing_but_a_log_line(
    host: SshHost, follower: Follower, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    follower.start(*GATED, GATE=str(gate))
    following = follower.following()
    until(lambda: follower.text)
    for lines in (2, 4, 6):
        host.cut()
        until(partial(logged, caplog, lines))
    gate.open()
    assert following.result().status == 5
    assert follower.text == "before\nafter\n"
    lost, again, *_ = connection_log(caplog)
    assert lost.startswith("Connection to the instance lost, reconnecting: ")
    assert again.startswith("Connected again to the instance after ")
    assert again.endswith("; no output was missed")
    assert follower.checks == 3


def test_no_byte_is_lost_or_told_twice_when_cut_amid_much_output(
    host: SshHost, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    follower.start("sh", "-c", "seq 1 1000000")
    cuts = [4_000_000, 2_000_000, 20_000]

    def write(text: str) -> None:
        follower.said.append(text)
        if cuts and sum(map(len, follower.said)) > cuts[-1]:
            cuts.pop()
            host.cut()

    assert follower.training.follow(write).succeeded
    assert follower.text == "".join(f"{number}\n" for number in range(1, 1_000_001))
    assert len(connection_log(caplog)) >= 2


def test_a_killed_session_on_the_instance_changes_nothing_but_a_log_line(
    host: SshHost, follower: Follower, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    follower.start(*GATED, GATE=str(gate))
    following = follower.following()
    until(lambda: follower.text)
    host.kill_sessions()
    until(lambda: logged(caplog, 2))
    gate.open()
    assert following.result().status == 5
    assert follower.text == "before\nafter\n"


def test_swallowed_traffic_is_noticed_and_survived(host: SshHost, follower: Follower, gate: Gate) -> None:
    follower.start(*GATED, GATE=str(gate))
    following = follower.following()
    until(lambda: follower.text)
    host.swallow()
    gate.open()
    try:
        until(lambda: follower.checks >= 1)
    finally:
        host.swallow(False)
    assert following.result().status == 5
    assert follower.text == "before\nafter\n"


def test_a_host_that_is_away_is_waited_for_until_the_check_gives_up(
    host: SshHost, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = Follower(host, run_id=follower.run_id, ssh=follower.ssh, following=replace(QUICK, connect_seconds=0.5))

    def check() -> None:
        impatient.check()
        if impatient.checks == 2:
            raise InstanceLost("it was terminated")

    follower.start("sh", "-c", "echo before; sleep 300")
    try:
        with pytest.raises(InstanceLost):
            impatient.training.follow(lambda _: host.go_away(), check=check)
    finally:
        host.come_back()
    assert len(connection_log(caplog)) == 1


def test_another_machine_at_the_address_is_not_followed(host: SshHost, follower: Follower, tmp_path: Path) -> None:
    follower.start("sh", "-c", "echo before; sleep 300")
    with SshHost(tmp_path) as impostor:
        host.network.target_port, port = impostor.network.target_port, host.network.target_port
        try:
            with pytest.raises(HostKeyMismatch):
                follower.training.follow(lambda _: host.cut())
        finally:
            host.network.target_port = port


def test_a_login_refused_for_long_ends_the_following(host: SshHost, follower: Follower) -> None:
    follower.start("sh", "-c", "echo before; sleep 300")
    policy = replace(retry.SSH, login_seconds=0.3)
    ssh = Ssh(host.settings(), address="127.0.0.1", host_key=host.host_key, policy=policy)
    impatient = Follower(host, run_id=follower.run_id, ssh=ssh, following=replace(QUICK, total_seconds=0.5))
    authorized = set(host.authorized)

    def refuse(_: str) -> None:
        host.authorized.clear()
        host.cut()

    try:
        with ssh, pytest.raises(SshRefused):
            impatient.training.follow(refuse)
    finally:
        host.authorized |= authorized


def test_a_start_over_a_broken_connection_is_tried_again(host: SshHost, follower: Follower) -> None:
    follower.ssh.connect(deadline_seconds=60)
    host.cut()
    assert follower.start("true") is True
    assert follower.follow().succeeded


def test_an_instance_that_cannot_hold_the_files_is_explained(host: SshHost, follower: Follower) -> None:
    (host.home / ".orchestrator").mkdir(exist_ok=True)
    follower.directory.touch()
    with pytest.raises(SshError, match=r"could not work on the instance .*ROOT_VOLUME_GB"):
        follower.start("true")
    follower.directory.unlink()
