"""A sandbox machine, seen from the EC2 API: switched on, off and disturbed; it reports when it is up and gone."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import orchestrator
from orchestrator.errors import SandboxError
from orchestrator_sandbox.ec2.host_config import CERTIFICATES, ENDED_BY_ITSELF, REBOOT, HostConfig
from orchestrator_sandbox.processes.child import ChildProcess

BOOT_SECONDS = 300
GRACE_SECONDS = 3


class Ending(Enum):
    """Why a machine is off."""

    ORDERED = "the API switched it off"
    BY_ITSELF = "a process on it did"
    FAILED = "it did not boot, or its host process died"


class Machine:
    """One machine that is on, from its boot to its end.

    Args:
        config: what it is.
        on_up: called from another thread whenever it has booted and SSH answers.
        on_off: called from another thread, once, when no process of it is left.
    """

    def __init__(self, config: HostConfig, *, on_up: Callable[[], None], on_off: Callable[[Ending], None]) -> None:
        self.config = config
        self.log = config.directory / "host.log"
        self._on_up = on_up
        self._on_off = on_off
        self._lock = threading.Lock()
        self._ordered_off = False
        self._end: threading.Thread | None = None
        self._host = self._start()
        self._life = threading.Thread(target=self._live, name=f"life of {config.instance_id}", daemon=True)
        self._life.start()

    def power_off(self) -> None:
        """Take every process on it down; returns at once."""
        with self._lock:
            if not self._ordered_off:
                self._ordered_off = True
                self._end = threading.Thread(target=self._host.close, name=f"end of {self.config.instance_id}")
                self._end.start()

    def join(self) -> None:
        """Wait until it is off."""
        self._life.join()
        if self._end is not None:
            self._end.join()

    def tell(self, order: str) -> None:
        """Give the host an order: see `host.py`.

        Raises:
            SandboxError: it is off, or not up yet.
        """
        try:
            control = os.open(self.config.control, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SandboxError(
                f"instance {self.config.instance_id} takes no orders: it is off, or not up yet"
            ) from error
        with os.fdopen(control, "w") as pipe:
            pipe.write(f"{order}\n")

    def _start(self) -> ChildProcess:
        return ChildProcess(
            [sys.executable, "-m", "orchestrator_sandbox.ec2.host", str(self.config.write())],
            name=f"instance {self.config.instance_id}",
            log=self.log,
            env=_environment(),
            grace_seconds=GRACE_SECONDS,
        )

    def _live(self) -> None:
        """Follow it through its reboots."""
        while (code := self._one_boot()) == REBOOT and self._start_again():
            pass
        shutil.rmtree(self.config.scratch, ignore_errors=True)  # a host that was killed has not done it
        if self._ordered_off:
            self._on_off(Ending.ORDERED)
        else:
            self._on_off(Ending.BY_ITSELF if code == ENDED_BY_ITSELF else Ending.FAILED)

    def _start_again(self) -> bool:
        with self._lock:
            if not self._ordered_off:
                self._host = self._start()
            return not self._ordered_off

    def _one_boot(self) -> int | None:
        with self._host as host:
            try:
                host.await_port(self.config.port, self.config.address, seconds=BOOT_SECONDS)
            except SandboxError:
                return host.returncode
            self._on_up()
            return host.wait()


def _environment() -> Mapping[str, str]:
    """What the host process itself needs; no variable of ours goes further (`host.py` makes a new set)."""
    ours = {name: value for name, value in os.environ.items() if name in ("PATH", *CERTIFICATES)}
    return {**ours, "PYTHONPATH": str(Path(orchestrator.__file__).parents[1]), "LANG": "C.UTF-8"}
