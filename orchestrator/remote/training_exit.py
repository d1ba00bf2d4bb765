"""How a training on an instance ended, as `supervisor.sh` tells it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Literal, Self, get_args

ExitKind = Literal["exited", "signaled", "deadline", "stopped", "lost", "rebooted"]

_LITTLE_DISK_KB = 100 << 10

_BROKEN_GPU = "start the run again, on another machine"
_FAULT_OF_CODE = "most often the training's own code, or its CUDA libraries, asked for what cannot be"
_XIDS = {
    13: ("graphics engine exception", _FAULT_OF_CODE),
    31: ("memory page fault", _FAULT_OF_CODE),
    43: ("the GPU stopped processing", _FAULT_OF_CODE),
    45: ("the GPU was cleared after an earlier error", _FAULT_OF_CODE),
    48: ("double-bit memory error", _BROKEN_GPU),
    62: ("internal micro-controller halt", _BROKEN_GPU),
    63: ("memory row remapped", _BROKEN_GPU),
    64: ("memory row could not be remapped", _BROKEN_GPU),
    74: ("NVLink error", _BROKEN_GPU),
    79: ("fallen off the bus", _BROKEN_GPU),
    92: ("many single-bit memory errors", _BROKEN_GPU),
    94: ("contained memory error", _BROKEN_GPU),
    95: ("uncontained memory error", _BROKEN_GPU),
    119: ("its firmware does not answer", _BROKEN_GPU),
    120: ("its firmware failed", _BROKEN_GPU),
    140: ("memory error without recovery", _BROKEN_GPU),
}
"""What the numbers mean, and what to do: https://docs.nvidia.com/deploy/xid-errors/."""


@dataclass(frozen=True, kw_only=True)
class MachineFacts:
    """What the machine's kernel can tell about an end; None where it does not.

    Attributes:
        oom_kills: processes of the machine that it killed for lack of memory while the training ran.
        cgroup_oom_kills: those of them that were in the cgroup of the training; a container is in another one.
        memory_kb: what the machine has, in KiB.
        least_memory_kb: the least that was available while the training ran, looked at twice a second.
        disk_kb: what was free at the end where the login's home is.
        xid: the first error of a GPU that NVIDIA's driver told of while the training ran.
    """

    oom_kills: int | None = None
    cgroup_oom_kills: int | None = None
    memory_kb: int | None = None
    least_memory_kb: int | None = None
    disk_kb: int | None = None
    xid: int | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """Read `name=number`; a name that is not known is of another version.

        Raises:
            ValueError: it is something else.
        """
        if bad := [word for word in words if not re.fullmatch(r"[a-z_]+=[0-9]{1,18}", word)]:
            raise ValueError(f"{bad[0]!r} is no fact")
        known = {fact.name for fact in fields(cls)}
        return cls(
            **{name: int(number) for name, _, number in (word.partition("=") for word in words) if name in known}
        )

    @property
    def lack_of_memory(self) -> str | None:
        """One clause when the kernel ran out of memory, with what to do; else None."""
        if not self.oom_kills and not self.cgroup_oom_kills:
            return None
        whose = "its machine" if self.cgroup_oom_kills == 0 else "it"
        return f"the kernel killed a process of {whose} for lack of memory{self._memory}: choose a larger INSTANCE_TYPE"

    @property
    def lack_of_disk(self) -> str | None:
        """One clause when hardly anything was free; else None."""
        if self.disk_kb is None or self.disk_kb > _LITTLE_DISK_KB:
            return None
        return f"its disk has {self.disk_kb >> 10} MB left: raise ROOT_VOLUME_GB"

    @property
    def gpu_error(self) -> str | None:
        """One clause when a GPU failed, with what to do; else None."""
        if self.xid is None:
            return None
        meaning, advice = _XIDS.get(self.xid, ("", "look it up at https://docs.nvidia.com/deploy/xid-errors/"))
        return f"the GPU reported Xid {self.xid}{f' ({meaning})' if meaning else ''}: {advice}"

    @property
    def may_lack_memory(self) -> bool:
        """Whether nothing is known that speaks against it."""
        if self.oom_kills is None or self.memory_kb is None or self.least_memory_kb is None:
            return True
        return bool(self.oom_kills) or self.least_memory_kb < self.memory_kb / 10

    @property
    def _memory(self) -> str:
        if not self.memory_kb:
            return ""
        total = f"{_gigabytes(self.memory_kb)} GB"
        used = self.memory_kb - (self.memory_kb if self.least_memory_kb is None else self.least_memory_kb)
        # Less was in use than the machine has: the end came between two looks, or the limit is another one.
        return f" ({_gigabytes(used)} of {total})" if used > self.memory_kb / 2 else f" ({total})"


def _gigabytes(kilobytes: int) -> str:
    return f"{kilobytes / (1 << 20):.1f}".removesuffix(".0")


@dataclass(frozen=True)
class TrainingExit:
    """How a training ended.

    Attributes:
        kind: by itself (`exited`), by a signal that was not ours (`signaled`), by ours at its deadline
            or on request (`deadline`, `stopped`), or nobody knows: the supervisor or the machine died
            (`lost`), or the machine was started anew meanwhile (`rebooted`).
        status: the exit status, or the signal's number when `signaled`; None when `lost` or `rebooted`.
        finished: when, by the instance's clock; None when `lost` or `rebooted`.
        facts: what its machine knows of it.
    """

    kind: ExitKind
    status: int | None = None
    finished: datetime | None = None
    facts: MachineFacts = field(default=MachineFacts(), compare=False)

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
        count = 0 if kind in ("lost", "rebooted") else 2
        try:
            facts = MachineFacts.parse(numbers[count:])
            if count == 0:
                return cls(kind, facts=facts)  # type: ignore[arg-type]
            status, finished = (int(number) for number in numbers[:count])
            return cls(kind, status, datetime.fromtimestamp(finished, UTC), facts)  # type: ignore[arg-type]
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
                doubt = self.status == signal.SIGKILL and self.facts.may_lack_memory and not self.facts.lack_of_memory
                hint = ": out of memory?" if doubt else ""
                return f"the training was killed by {name}{hint}"
            case "deadline":
                return "the training was ended at its deadline; raise MAX_TRAINING_MINUTES if it needs longer"
            case "stopped":
                return "the training was stopped on request"
            case "lost":
                memory = "the machine ran out of memory, or " if self.facts.may_lack_memory else ""
                return f"the training vanished without an exit status: {memory}the supervisor was killed"
            case "rebooted":
                return "the training ended with its machine, which rebooted"
