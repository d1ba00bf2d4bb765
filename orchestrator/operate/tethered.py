"""`python -m orchestrator.operate.tethered PARENT PROGRAM ...`: a program that is told to end when its parent dies.

A `serve` that is killed would leave webserver and daemon behind, and whoever starts it again would find the port taken.
Linux only; elsewhere the program is started as it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Become the program; does not return.

    Args:
        parent: our parent's process ID; another one by now: it is dead.
        command: program and arguments.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - what `serve` has chosen


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
