"""Process 1 of a sandbox machine: starts its programs, reaps every process on it, ends them all."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Program:
    """A started program: `ended` becomes its exit status, or minus the signal that ended it."""

    process: subprocess.Popen[bytes]
    ended: asyncio.Future[int]


class Init:
    """What init is to a real machine.

    It is a "child subreaper" (https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html):
    whatever is started on the machine stays its descendant, also as a daemon, and can be ended. It alone
    waits for children, because `kill -0` finds a daemon alive until it is reaped. When our own
    parent, `guardian.py`, is killed, the kernel sends us SIGTERM.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._programs: dict[int, Program] = {}
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        new_session: bool = True,
    ) -> Program:
        """Start a program, with the arguments of `subprocess.Popen`."""
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=new_session
        )
        program = Program(process, self._loop.create_future())
        self._programs[process.pid] = program
        return program

    def end_all(self) -> None:
        """Kill every process on the machine, and return when none is left."""
        machine = psutil.Process()
        while running := machine.children(recursive=True):
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if program := self._programs.pop(pid, None):
                    program.process.returncode = os.waitstatus_to_exitcode(status)
                    if not program.ended.done():  # whoever waited may have given up
                        program.ended.set_result(program.process.returncode)
