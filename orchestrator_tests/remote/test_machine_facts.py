"""What the machine's kernel can tell of an end: lack of memory, a reboot, a full disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import TrainingFailed, TrainingLost
from orchestrator.pipeline.training.failure import failure
from orchestrator.remote import TrainingExit
from orchestrator.remote.training_exit import MachineFacts
from orchestrator_tests.support.follower import Follower, shell, supervisor_of
from orchestrator_tests.support.gate import PASS_IN_SHELL, Gate
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

GB = 1 << 20
REBOOT = shell(
    "cd $ORCHESTRATOR_TRAINING; set -- $(readlink pid)",
    'rm pid; ln -s "$1 another-boot $3" pid; kill -9 $1; exec sleep 300',
)


@pytest.fixture
def kernel(host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of /proc/vmstat, as the supervisor's `grep` sees it."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 7\noom_kill 3\n")
    grep = tmp_path / "bin" / "grep"
    grep.parent.mkdir()
    real = shutil.which("grep")
    grep.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        f'[ "$last" != /proc/vmstat ] || exec {real} oom_kill {vmstat}\nexec {real} "$@"\n'
    )
    grep.chmod(0o755)
    monkeypatch.setitem(host.environment, "PATH", f"{grep.parent}:{os.environ['PATH']}")
    return vmstat


def test_what_the_kernel_has_killed_meanwhile_is_told(follower: Follower, kernel: Path) -> None:
    follower.start("sh", "-c", f"echo oom_kill 5 >{kernel}; exit 1")
    ended = follower.follow()
    assert (ended.kind, ended.status, ended.facts.oom_kills) == ("exited", 1, 2)
    assert ended.facts.memory_kb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 10
    assert 0 < (ended.facts.least_memory_kb or 0) < ended.facts.memory_kb
    assert ended.facts.disk_kb is not None
    assert follower.training.state() == ended


def test_nothing_green_turns_red_by_it(follower: Follower, kernel: Path) -> None:
    follower.start("sh", "-c", f"echo oom_kill 5 >{kernel}")
    assert follower.follow().succeeded


@pytest.mark.parametrize("text", ["", "oom_kill many\n", "oom_kill 2\n"])
def test_a_kernel_that_says_nothing_of_use_changes_no_end(follower: Follower, kernel: Path, text: str) -> None:
    follower.start("sh", "-c", f"printf '{text}' >{kernel}; exit 3")
    ended = follower.follow()
    assert (ended.kind, ended.status) == ("exited", 3)
    assert not ended.facts.oom_kills


def test_what_the_cgroup_alone_counts_is_told(follower: Follower, kernel: Path, tmp_path: Path) -> None:
    events, real = tmp_path / "memory.events", shutil.which("grep")
    events.write_text("oom_kill 1\n")
    (tmp_path / "bin" / "grep").write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        f'case $last in /proc/vmstat) exit 1 ;; */memory.*) exec {real} oom_kill {events} ;; esac\nexec {real} "$@"\n'
    )
    follower.start("sh", "-c", f"echo oom_kill 2 >{events}; exit 1")
    facts = follower.follow().facts
    assert (facts.oom_kills, facts.cgroup_oom_kills) == (None, 1)


def test_a_supervisor_that_was_killed_for_lack_of_memory_is_told_too(
    follower: Follower, kernel: Path, gate: Gate
) -> None:
    follower.start(*shell("echo begun", PASS_IN_SHELL), GATE=str(gate))
    following = follower.following()
    until(lambda: follower.text)
    kernel.write_text("oom_kill 4\n")
    supervisor_of(follower).kill()
    ended = following.result()
    assert (ended.kind, ended.facts.oom_kills) == ("lost", 1)
    gate.open()
    follower.training.stop(grace_seconds=0)


def test_a_machine_that_rebooted_is_told_from_a_supervisor_that_was_killed(follower: Follower) -> None:
    follower.start(*REBOOT)
    assert follower.follow() == TrainingExit("rebooted")
    assert follower.training.state() == TrainingExit("rebooted")
    assert follower.start("true") is False
    stopped = follower.training.stop(grace_seconds=0)
    assert stopped is not None
    assert stopped.kind == "stopped"


def test_a_kernel_without_a_boot_id_proves_no_reboot(follower: Follower) -> None:
    follower.start(*shell(*(line.replace("another-boot", "-") for line in REBOOT[2].splitlines())))
    assert follower.follow() == TrainingExit("lost")
    follower.training.stop(grace_seconds=0)


FELL_OFF = "[99.1] NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


@pytest.fixture
def kernel_log(host: SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of the kernel's log, as `dmesg` shows it; not readable while it is not there."""
    log = tmp_path / "kernel.log"
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("dmesg", "sudo", "journalctl"):
        (programs / name).write_text(f"#!/bin/sh\nexec cat {log}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setitem(host.environment, "PATH", f"{programs}:{os.environ['PATH']}")
    log.write_text("[1.0] Linux\n[7.0] NVRM: Xid (PCI:0000:00:1e): 13, pid=7, name=python\n")
    return log


def test_a_gpu_that_failed_meanwhile_is_told(follower: Follower, kernel_log: Path) -> None:
    log = f'echo "{FELL_OFF}" >>{kernel_log}; echo "[99.2] NVRM: Xid (PCI:0000:00:1e): 154, pid=1" >>{kernel_log}'
    follower.start("sh", "-c", f"{log}; exit 1")
    ended = follower.follow()
    assert (ended.kind, ended.status, ended.facts.xid) == ("exited", 1, 79)
    assert "; the GPU reported Xid 79 (fallen off the bus): start" in str(failure("build 7", ended, []))


@pytest.mark.parametrize("change", ["true", "rm {0}", "echo NVRM: Xid of no form >>{0}", "echo boot >{0}"])
def test_what_the_kernel_had_told_before_or_tells_unreadably_changes_no_end(
    follower: Follower, kernel_log: Path, change: str
) -> None:
    follower.start("sh", "-c", f"{change.format(kernel_log)}; exit 3")
    ended = follower.follow()
    assert (ended.kind, ended.status, ended.facts.xid) == ("exited", 3, None)


@pytest.mark.parametrize(
    ("xid", "words"), [(31, "(memory page fault): most often"), (95, "another machine"), (999, "Xid 999: look it up")]
)
def test_what_the_number_means_is_said(xid: int, words: str) -> None:
    assert words in str(failure("build 7", TrainingExit("exited", 1, facts=MachineFacts(xid=xid)), []))


# What is said of it

OUT_OF_MEMORY = MachineFacts(oom_kills=1, memory_kb=4 * GB, least_memory_kb=GB * 3 // 10)
SENTENCE = "the kernel killed a process of it for lack of memory (3.7 of 4 GB): choose a larger INSTANCE_TYPE"


@pytest.mark.parametrize(
    ("ended", "lines"),
    [
        (TrainingExit("exited", 1, facts=OUT_OF_MEMORY), ["epoch 1", "ERROR mlflow.cli: === Run (ID 'a') failed ==="]),
        (TrainingExit("exited", 1, facts=OUT_OF_MEMORY), ["run.sh: line 1: 8994 Killed   python train.py"]),
        (TrainingExit("signaled", 9, facts=OUT_OF_MEMORY), []),
        (TrainingExit("lost", facts=OUT_OF_MEMORY), ["epoch 1"]),
    ],
)
def test_lack_of_memory_is_said_once(ended: TrainingExit, lines: list[str]) -> None:
    first, *_ = str(failure("build 7", ended, lines)).splitlines()
    assert SENTENCE in first
    assert first.count("INSTANCE_TYPE") == 1
    assert "out of memory?" not in first


@pytest.mark.parametrize(
    ("ended", "out_of_memory"),
    [
        (TrainingExit("exited", 1, facts=OUT_OF_MEMORY), True),
        (TrainingExit("lost", facts=OUT_OF_MEMORY), True),
        (TrainingExit("deadline", 0, facts=OUT_OF_MEMORY), False),
        (TrainingExit("signaled", 9), False),
    ],
)
def test_lack_of_memory_is_known_to_whoever_may_try_again(ended: TrainingExit, out_of_memory: bool) -> None:
    assert failure("build 7", ended, []).out_of_memory is out_of_memory


def test_the_reason_that_the_output_gives_stays() -> None:
    error = failure("build 7", TrainingExit("exited", 1, facts=OUT_OF_MEMORY), ["RuntimeError: DataLoader worker died"])
    assert isinstance(error, TrainingFailed)
    assert f"status 1 (RuntimeError: DataLoader worker died); {SENTENCE}" in str(error)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (MachineFacts(oom_kills=1), "a process of it for lack of memory: choose"),
        (MachineFacts(cgroup_oom_kills=2, memory_kb=8 * GB), "a process of it for lack of memory (8 GB): choose"),
        (MachineFacts(oom_kills=1, cgroup_oom_kills=0), "a process of its machine for lack of memory: choose"),
        (MachineFacts(oom_kills=1, memory_kb=8 * GB, least_memory_kb=7 * GB), "lack of memory (8 GB): choose"),
        (MachineFacts(disk_kb=12 << 10), "its disk has 12 MB left: raise ROOT_VOLUME_GB"),
    ],
)
def test_no_more_is_said_than_is_known(facts: MachineFacts, words: str) -> None:
    assert words in str(failure("build 7", TrainingExit("exited", 1, facts=facts), []))


def test_a_kill_with_memory_to_spare_was_not_for_lack_of_it() -> None:
    spare = MachineFacts(oom_kills=0, memory_kb=8 * GB, least_memory_kb=6 * GB)
    assert TrainingExit("signaled", 9, facts=spare).describe() == "the training was killed by signal 9 (SIGKILL)"
    assert "memory" not in TrainingExit("lost", facts=spare).describe()
    assert isinstance(failure("build 7", TrainingExit("lost", facts=spare), []), TrainingLost)


@pytest.mark.parametrize(
    "text", ["exited 0 1 x", "exited 0 1 oom_kills=", "exited 0 1 oom_kills=-1", "exited oom_kills=1"]
)
def test_an_end_that_the_supervisor_cannot_have_written_proves_nothing(text: str) -> None:
    assert TrainingExit.parse(text) == TrainingExit("lost")


def test_a_fact_of_another_version_is_passed_over() -> None:
    parsed = TrainingExit.parse("exited 0 1 gpu_xids=1 oom_kills=2")
    assert parsed is not None
    assert parsed.succeeded
    assert parsed.facts == MachineFacts(oom_kills=2)
