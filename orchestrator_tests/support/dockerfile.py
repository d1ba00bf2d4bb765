"""The Dockerfile, read: what it copies, runs and starts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
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
    """Do what the COPY instructions of the working directory do; .dockerignore must let it through, as for Docker."""
    lines = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    sent = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    ignored = shutil.ignore_patterns(*(line.removeprefix("**/") for line in lines if line.startswith("**/")))
    for *sources, target in instructions("COPY"):
        if target.startswith("/"):
            continue
        for source in sources:
            assert source.removeprefix("./") in sent, f"{source} is not in .dockerignore"
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, directory / target, ignore=ignored)
            else:
                shutil.copy(PROJECT / source, directory / target)


def check_out(directory: Path) -> None:
    """What `git clone` brings of this checkout, as it is now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    names = [name for name in files.split("\0") if name and (PROJECT / name).is_file()]
    tar = subprocess.run(["tar", "-c", *names], cwd=PROJECT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x"], cwd=directory, input=tar.stdout, check=True)


def install_command(python: Path) -> list[str]:
    """The command that installs the orchestrator into the image; with this Python, and uv's shared cache."""
    (words,) = [words for words in instructions("RUN") if _command(words)[:3] == ["uv", "pip", "install"]]
    command = _command(words)
    command.remove("--no-cache")  # how fast; not what
    # As for Docker with the ARGs as they are: empty.
    unset = [re.sub(r"\$\{[A-Z_]+:\+.*\}", "", word) for word in _joined(command)]
    return [*filter(None, unset[1:]), "--python", str(python)]


def _command(words: list[str]) -> list[str]:
    """Without the options of RUN."""
    return [word for word in words if not word.startswith("--mount=")]


def _joined(words: list[str]) -> list[str]:
    """`${NAME:+several words}` as one word."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].count("{") > joined[-1].count("}"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined
