"""The file that tells the supervisor what to run, and what can stand in no such file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNUSABLE = "a NUL character or half of a surrogate pair, which no program can be given"
"""What is wrong with a text that is not `can_be_given`."""


@dataclass(frozen=True)
class InDirectory:
    """An argument with places in the training's directory, which only the instance knows.

    It is a word of bash as well, because `mlflow run` has bash read the arguments of `docker run`.

    Attributes:
        parts: the text; the directory, with a slash at its end, stands between each two of them.
    """

    parts: tuple[str, ...]


Argument = str | InDirectory


@dataclass(frozen=True)
class JobFile:
    """A file that the command finds in the training's directory.

    Attributes:
        name: its name there.
        text: what is in it.
        variable: exported with its place; None: nothing is.
        secret: whether none but the training's login may read it; else all may, such as any user in a container.
    """

    name: str
    text: str
    variable: str | None = None
    secret: bool = False


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


def job_file(command: Sequence[Argument], environment: Mapping[str, str], files: Sequence[JobFile] = ()) -> bytes:
    """The file that the supervisor reads: exports, files to make, then its function `run` with the command.

    Args:
        command: program and arguments.
        environment: variables to add to those of the login.
        files: what to put beside the job.

    Raises:
        ValueError: one of them is nothing that a program can be given.
    """
    variables = [*environment, *(file.variable for file in files if file.variable is not None)]
    if bad := [name for name in variables if not is_variable(name)]:
        raise ValueError(f"{bad[0]!r} cannot be the name of a variable")
    if not command:
        raise ValueError("there is no command to run")
    texts = [part for argument in command for part in _parts(argument)]
    texts += [text for file in files for text in (file.name, file.text)]
    if not all(map(can_be_given, (*texts, *environment.values()))):
        raise ValueError(f"the command or its environment holds {UNUSABLE}")
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    lines += [
        f"place {shlex.quote(file.name)} {shlex.quote(file.text)} {shlex.quote(file.variable or '')} "
        f"{'600' if file.secret else '644'}\n"
        for file in files
    ]
    return _encoded("".join((*lines, f"run {' '.join(map(_word, command))}\n")))


def _parts(argument: Argument) -> tuple[str, ...]:
    return (argument,) if isinstance(argument, str) else argument.parts


def _word(argument: Argument) -> str:
    return '"$directory"'.join(map(shlex.quote, _parts(argument)))


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # bytes of an environment that are not UTF-8 stay as they are
