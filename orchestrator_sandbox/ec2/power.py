"""The power switch of a sandbox machine: programs named as those that switch off a real one.

They must reach the sandbox's machine, and never the computer that the sandbox runs on.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("shutdown", "poweroff", "halt", "reboot", "systemctl", "init", "telinit")
_BY_PATH = re.compile(rf"(?<![\w./-])/(?:usr/)?s?bin/({'|'.join(PROGRAMS)})\b")


@dataclass(frozen=True)
class Off:
    """The machine goes off.

    Attributes:
        minutes: from now.
        reboot: it comes up again.
    """

    minutes: float = 0
    reboot: bool = False


@dataclass(frozen=True)
class Cancelled:
    """What was ordered before does not happen."""


def install(directory: Path, control: Path) -> None:
    """Make the programs, which write `power <name> <arguments>` to `control`, a FIFO."""
    directory.mkdir(exist_ok=True)
    for name in PROGRAMS:
        program = directory / name
        program.write_text(f'#!/bin/sh\necho "power {name} $*" > {shlex.quote(str(control))}\n')
        program.chmod(0o755)


def meaning(program: str, arguments: Sequence[str]) -> Off | Cancelled | None:
    """What the program of that name does with these arguments; None: nothing to the power.

    Times are those of `shutdown` (https://man7.org/linux/man-pages/man8/shutdown.8.html): `now`,
    `+m` minutes, by default one; a clock time is not supported.
    """
    words = set(arguments)
    if program == "shutdown":
        times = [word for word in arguments if not word.startswith("-")]
        if "-c" in words:
            return Cancelled()
        time = times[0] if times else "+1"
        if not re.fullmatch(r"now|\+?\d+", time):
            return None
        return Off(0 if time == "now" else float(time), reboot="-r" in words)
    if program in ("init", "telinit"):
        return Off(reboot="6" in words) if words & {"0", "6"} else None
    if program == "systemctl":
        return Off(reboot="reboot" in words) if words & {"poweroff", "halt", "reboot"} else None
    return Off(reboot=program == "reboot")


def contained(script: str, programs: Path) -> str:
    """Rewrite `/sbin/poweroff` and the like in a script to the programs of `install`."""
    script = _BY_PATH.sub(lambda match: str(programs / match[1]), script)
    return script.replace("/proc/sysrq-trigger", "/dev/null")
