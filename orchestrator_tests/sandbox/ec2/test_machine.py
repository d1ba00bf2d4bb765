"""A sandbox machine boots, reboots and ends as a real one, and takes every process along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.errors import SandboxError
from orchestrator.resources.ec2.user_data import HostKey
from orchestrator_sandbox.ec2.machine import Ending
from orchestrator_tests.support.machines import Booted, booting, config_of, host_key, run
from orchestrator_tests.support.waiting import until


def test_a_machine_that_swallows_its_traffic_can_be_switched_off(tmp_path: Path) -> None:
    with booting(tmp_path / "i-1") as one:
        one.wait_until_up()
        one.machine.tell("swallow 600")
        one.machine.power_off()
        assert one.endings.get(timeout=20) is Ending.ORDERED
        assert not one.machine.config.scratch.exists()


def test_the_host_key_is_the_one_in_the_user_data(tmp_path: Path) -> None:
    key = HostKey.generate()
    with booting(tmp_path / "i-1", {"ssh_keys": {"ed25519_private": key.private}}) as one:
        one.wait_until_up()
        with one.connect() as connected:
            assert host_key(connected) == key.public


def test_every_process_ends_with_the_machine_however_it_hides(tmp_path: Path) -> None:
    hidden = "setsid sh -c 'trap \"\" TERM HUP; echo $$; (setsid sleep 1000 &) ; while :; do sleep 1000; done'"
    with booting(tmp_path / "i-1") as one:
        one.wait_until_up()
        with one.connect() as connected:
            transport = connected.get_transport()
            assert transport is not None
            channel = transport.open_session()
            channel.exec_command(f"{hidden} &")
            pid = int(channel.recv(100))
            of_machine = until(lambda: find(one, "sleep 1000"))
            one.machine.power_off()
            assert one.endings.get(timeout=20) is Ending.ORDERED
    assert not any(psutil.pid_exists(process) for process in [pid, *of_machine])
    assert not one.machine.config.scratch.exists()
    with pytest.raises(SandboxError, match="takes no orders"):
        one.machine.tell("cut")


def find(one: Booted, command: str) -> list[int]:
    """The machine's processes with this command line."""
    home = str(one.machine.config.directory / "home")
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "environ"])
        if process.info["cmdline"] == command.split()
        and (process.info["environ"] or {}).get("HOME", "").startswith(home)
    ]


@pytest.mark.parametrize("command", ["poweroff", "shutdown -h now"])
def test_a_process_on_the_machine_can_switch_it_off(tmp_path: Path, command: str) -> None:
    with booting(tmp_path / "i-1", {"runcmd": [command]}) as one:
        assert one.endings.get(timeout=20) is Ending.BY_ITSELF


def test_the_deadline_in_the_user_data_switches_the_machine_off(tmp_path: Path) -> None:
    loop = "nohup sh -c 'while [ ! -e deadline ]; do sleep 0.1; done; /sbin/shutdown -P now' >/dev/null 2>&1 &"
    with booting(tmp_path / "i-1", {"bootcmd": [loop]}) as one:
        one.wait_until_up()
        with one.connect() as connected:
            run(connected, "touch ../root/deadline")
        assert one.endings.get(timeout=20) is Ending.BY_ITSELF


def test_a_deadline_that_has_passed_at_boot_switches_the_machine_off(tmp_path: Path) -> None:
    with booting(tmp_path / "i-1", {"bootcmd": [["shutdown", "now"], "sleep 1000"]}) as one:
        assert one.endings.get(timeout=20) is Ending.BY_ITSELF
        assert one.ups.empty()


def test_a_reboot_runs_bootcmd_again_and_runcmd_only_once(tmp_path: Path) -> None:
    config = {"bootcmd": ["echo boot"], "runcmd": [["echo", "a b"]], "packages": ["vim"]}
    with booting(tmp_path / "i-1", config) as one:
        log = one.machine.config.directory / "cloud-init-output.log"
        one.wait_until_up()
        until(lambda: log.read_text() == "boot\na b\n")
        one.machine.tell("power shutdown -h +60")
        one.machine.tell("power shutdown -c")
        with one.connect() as connected:
            before = host_key(connected)
            run(connected, "reboot")
        one.wait_until_up()
        with one.connect() as connected:
            assert host_key(connected) == before
        assert log.read_text() == "boot\na b\nboot\n"
        assert "packages: the sandbox does not support it" in one.machine.log.read_text()


def test_a_machine_that_cannot_boot_ends_and_its_log_says_why(tmp_path: Path) -> None:
    with booting(tmp_path / "i-1", {"ssh_keys": {"rsa_private": "nonsense"}}) as one:
        assert one.endings.get(timeout=20) is Ending.FAILED
        assert "KeyImportError" in one.machine.log.read_text()


LONELY = """
import sys, time
from pathlib import Path
from orchestrator_sandbox.ec2.host_config import HostConfig
from orchestrator_sandbox.ec2.machine import Machine
Machine(HostConfig.read(Path(sys.argv[1])), on_up=lambda: print("up", flush=True), on_off=print).join()
"""


@pytest.mark.parametrize("victim", ["owner", "guardian", "host"])
def test_no_process_is_left_when_one_of_those_in_charge_is_killed(tmp_path: Path, victim: str) -> None:
    config = config_of(tmp_path / "i-1", {"bootcmd": ["setsid sleep 1000 &"]})
    with subprocess.Popen([sys.executable, "-c", LONELY, config.write()], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        guardian, host, sleep = family = psutil.Process(owner.pid).children(recursive=True)
        assert sleep.name() == "sleep"
        victims = {"owner": owner.pid, "guardian": guardian.pid, "host": host.pid}
        os.kill(victims[victim], signal.SIGKILL)
        until(lambda: not any(process.is_running() for process in family), seconds=20)
