"""The file that tells the supervisor what to run, and what can stand in no such file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

UNUSABLE = "a NUL character or half of a surrogate pair, which no program can be given"
"""What is wrong with a text that is not `can_be_given`."""


def is_variable(name: str) -> bool:
    """Whether a shell can export a variable of this name.

    Source: https://pubs.opengroup.org/onlinepubs/9799919799/basedefs/V1_chap03.html#tag_03_216
    """
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None


def can_be_given(text: str) -> bool:
    """Whether a program can get this text as an argument or in a variable."""
    try:
        return b"\0" not in _encoded(text)
    except UnicodeEncodeError:
        return False


def job_file(command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """The file that the supervisor reads: exports, then its function `run` with the command.

    Args:
        command: program and arguments.
        environment: variables to add to those of the login.

    Raises:
        ValueError: one of them is nothing that a program can be given.
    """
    if bad := [name for name in environment if not is_variable(name)]:
        raise ValueError(f"{bad[0]!r} cannot be the name of a variable")
    if not command:
        raise ValueError("there is no command to run")
    if not all(map(can_be_given, (*command, *environment.values()))):
        raise ValueError(f"the command or its environment holds {UNUSABLE}")
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    return _encoded("".join((*lines, f"run {shlex.join(command)}\n")))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # bytes of an environment that are not UTF-8 stay as they are
