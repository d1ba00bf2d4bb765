"""The Dockerfile, read: what it copies, runs and starts."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LINES = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def instructions(name: str) -> list[list[str]]:
    """The words of each instruction of that name, as a shell reads them."""
    return [shlex.split(line)[1:] for line in LINES if line.startswith(f"{name} ")]


def exec_form(name: str) -> list[str]:
    """The words of the one instruction of that name, which is a JSON list."""
    (line,) = [line for line in LINES if line.startswith(f"{name} ")]
    words = json.loads(line.removeprefix(name))
    assert isinstance(words, list)
    return words


def copy_into(directory: Path) -> None:
    """Do what the COPY instructions do; what .dockerignore names cannot be copied, as for Docker."""
    ignored = shutil.ignore_patterns(*(PROJECT / ".dockerignore").read_text().replace("**/", "").split())
    for *sources, target in instructions("COPY"):
        for source in sources:
            assert not ignored("", [source]), f"{source} is in .dockerignore"
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, directory / target, ignore=ignored)
            else:
                shutil.copy(PROJECT / source, directory / target)


def install_command(python: Path) -> list[str]:
    """The command that installs the orchestrator into the image; with this Python, and uv's shared cache."""
    (command,) = [words for words in instructions("RUN") if words[:3] == ["uv", "pip", "install"]]
    for flag in ("--system", "--no-cache", "--compile-bytecode"):  # where to, and how fast; not what
        command.remove(flag)
    return [*command[1:], "--python", str(python)]
