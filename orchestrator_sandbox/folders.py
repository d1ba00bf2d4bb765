"""Folders that other users of the computer cannot look into: what is trained here is run, and logs hold anything."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from orchestrator.errors import SandboxError


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter; one that is there already is closed to all others.

    Raises:
        SandboxError: it belongs to another user, who could exchange what is in it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.geteuid():
        raise SandboxError(f"{path} belongs to another user: choose another folder, or remove this one")
    path.chmod(0o700)
    return path


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in place of one that is there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def kept_secret(file: Path) -> str:
    """A random secret, the same at each start."""
    if not file.exists():
        write_secret(file, secrets.token_hex(17))
    return file.read_text()


def append_only(path: str, flags: int) -> int:
    """An opener, for `open`, of log files: their owner's alone."""
    return os.open(path, flags, 0o600)
