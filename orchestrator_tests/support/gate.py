"""A gate that trainings wait at until a test opens it: a lock on a file, without polling; for all real trainings."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType
from typing import Self

PASS_IN_SHELL = 'flock --shared "$GATE" true'
"""How a shell script passes, with the gate's path in its environment; Python has `fcntl.flock`."""


class Gate:
    """Closed at first, and for as long as it is not opened; any number may wait, and pass.

    Attributes:
        path: a file that whoever wants to pass takes a shared lock of.
    """

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._file = path.open()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # which opens it

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        """Let everybody pass from now on."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Hold everybody up from now on; whoever is passing is waited for."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
