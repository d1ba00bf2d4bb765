"""`orchestrator serve` under systemd: it says when it is up, and one that is killed leaves nothing behind."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.operate.serve import require_free
from orchestrator.operate.systemd import notify
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.ui import TOKEN, served
from orchestrator_tests.support.waiting import until

UNIT = PROJECT / "deploy" / "systemd" / "orchestrator.service"


@pytest.mark.parametrize("name", ["{tmp}/notify", "@orchestrator-test-{pid}"])
def test_systemd_is_told_where_it_has_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = name.format(tmp=tmp_path, pid=os.getpid())
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        notify("READY=1")
        assert receiver.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/to/be/found"])
def test_nobody_is_told_where_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_what_is_tethered_ends_with_its_parent_and_is_not_begun_for_a_dead_one() -> None:
    tethered = [sys.executable, "-m", "orchestrator.operate.tethered"]
    sleep = f"[*{tethered!r}, str(os.getpid()), sys.executable, '-c', 'import signal; signal.pause()']"
    program = (
        f"import os, subprocess, sys; child = subprocess.Popen({sleep}); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        until(lambda: "-c" in child.cmdline())  # it has become the program
        parent.send_signal(signal.SIGKILL)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    ended = subprocess.run([*tethered, "1", "/bin/true"], cwd=PROJECT, check=False)
    assert ended.returncode == 128 + signal.SIGTERM


def test_the_unit_keeps_what_it_promises() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = dict(unit["Service"])
    for name, value in {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "on-failure", "KillMode": "process",
        "Type": "notify", "UMask": "0077", "CapabilityBoundingSet": "", "SuccessExitStatus": "143",
    }.items():  # fmt: skip
        assert service[name] == value
    assert float(service["TimeoutStopSec"]) >= 60


@pytest.mark.services
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    program = text.partition("ExecStart=")[2].split()[0]
    verified = tmp_path / UNIT.name
    verified.write_text(text.replace(program, "/bin/true"))  # it need not be installed here
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(verified)], capture_output=True, text=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line or str(tmp_path) in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.services
def test_a_serve_that_is_killed_leaves_nothing_that_the_next_one_would_meet(tmp_path: Path) -> None:
    with served(tmp_path, UI_TOKEN=TOKEN) as ui:
        family = ui.command.family()
        assert len(family) > 3
        ui.command.process.kill()
        until(lambda: not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE])
        require_free("127.0.0.1", ui.port)
