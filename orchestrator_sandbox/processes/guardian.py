"""The process between us and a sandbox program: it ends the program and all its descendants with us.

Started by `child.py` as `python guardian.py <grace seconds> <program> <arguments>`. It holds no state:
the end of its standard input, which the kernel closes however our process ends, is the order to stop.
On Linux it is a "child subreaper", so that also a descendant that became a daemon stays its own
(https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(grace_seconds: float, command: list[str]) -> int:
    """Run the program; return its exit status, 128 + signal number if a signal ended it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals = _signal_pipe()
    try:
        program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return 127
    sys.stdout.write(f"{program.pid}\n")
    sys.stdout.flush()
    _await_end(program, signals)
    _end_descendants(program, grace_seconds)
    code = program.returncode
    return code if code >= 0 else 128 - code


def _signal_pipe() -> int:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in (*ENDING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _await_end(program: subprocess.Popen[bytes], signals: int) -> None:
    """Return when the program has exited, our parent is gone, or we were asked to end."""
    parent = sys.stdin.fileno()
    while program.poll() is None:
        ready, _, _ = select.select([parent, signals], [], [])
        if parent in ready or any(number in ENDING for number in os.read(signals, 512)):
            return
        if sys.platform == "linux":
            _bury_orphans(program)


def _bury_orphans(program: subprocess.Popen[bytes]) -> None:
    """Take the exit status of descendants that became our children, or they stay as zombies."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_ALL, 0, look)) and ended.si_pid != program.pid:
        os.waitpid(ended.si_pid, 0)


def _end_descendants(program: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Ask all descendants to end, then kill what is left until nothing is."""
    import psutil  # not needed before, and every start would pay for it

    me = psutil.Process()
    deadline = time.monotonic() + grace_seconds

    def signal_all(send: Callable[[psutil.Process], None]) -> list[psutil.Process]:
        running = me.children(recursive=True)
        for process in running:
            try:
                send(process)
            except psutil.NoSuchProcess:
                continue
        return running

    def await_all(running: list[psutil.Process]) -> None:
        try:
            program.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return
        others = [process for process in running if process.pid != program.pid]
        psutil.wait_procs(others, timeout=max(0.0, deadline - time.monotonic()))

    await_all(signal_all(psutil.Process.terminate))
    while survivors := signal_all(psutil.Process.kill):
        deadline = time.monotonic() + grace_seconds
        await_all(survivors)
    program.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
