"""How a training on an instance ended, as `supervisor.sh` tells it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, get_args

ExitKind = Literal["exited", "signaled", "deadline", "stopped", "lost"]


@dataclass(frozen=True)
class TrainingExit:
    """How a training ended.

    Attributes:
        kind: by itself (`exited`), by a signal that was not ours (`signaled`), by ours at its deadline
            or on request (`deadline`, `stopped`), or nobody knows: the supervisor or the machine died
            (`lost`).
        status: the exit status, or the signal's number when `signaled`; None when `lost`.
        finished: when, by the instance's clock; None when `lost`.
    """

    kind: ExitKind
    status: int | None = None
    finished: datetime | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the training ended by itself, with status 0."""
        return self.kind == "exited" and self.status == 0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a state as the supervisor tells it; None when it is no end.

        An end that the supervisor cannot have written, because the training can reach the same files, proves nothing.
        """
        kind, *numbers = text.split() or [""]
        if kind not in get_args(ExitKind):
            return None
        try:
            status, finished = (int(number) for number in numbers)
            return cls(kind, status, datetime.fromtimestamp(finished, UTC))  # type: ignore[arg-type]
        except (ValueError, OverflowError, OSError):
            return cls("lost")

    def describe(self) -> str:
        """One sentence for the user."""
        match self.kind:
            case "exited":
                return f"the training exited with status {self.status}"
            case "signaled":
                try:
                    name = f"signal {self.status} ({signal.Signals(self.status or 0).name})"
                except ValueError:
                    name = f"signal {self.status}"
                hint = ": out of memory?" if self.status == signal.SIGKILL else ""
                return f"the training was killed by {name}{hint}"
            case "deadline":
                return "the training was ended at its deadline; raise MAX_TRAINING_MINUTES if it needs longer"
            case "stopped":
                return "the training was stopped on request"
            case "lost":
                return (
                    "the training vanished without an exit status: the machine rebooted, ran out of memory, "
                    "or the supervisor was killed"
                )
