"""`orchestrator …` as a process of its own, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.waiting import until

START_SECONDS = 90
THIS_CHECKOUT = (sys.executable, "-m", "orchestrator.cli")


class Command:
    """A command under way.

    Args:
        words: the words of the command line.
        cwd: the folder that it runs in; its output goes to a file there.
        program: what runs it.
        environment: its whole environment; default: one that leads to this checkout, and no setting.
    """

    def __init__(
        self,
        *words: str,
        cwd: Path,
        program: Sequence[str] = THIS_CHECKOUT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log = cwd / "output"
        checkout = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": str(PROJECT)}
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [*program, *words],
                cwd=cwd,
                env=checkout if environment is None else dict(environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def await_output(self, text: str) -> None:
        until(lambda: text in self.output or self.process.poll() is not None, seconds=START_SECONDS)
        assert text in self.output, self.output

    def family(self) -> Sequence[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return int(self.process.wait(60))


@contextmanager
def running(
    *words: str, cwd: Path, program: Sequence[str] = THIS_CHECKOUT, environment: Mapping[str, str] | None = None
) -> Iterator[Command]:
    command = Command(*words, cwd=cwd, program=program, environment=environment)
    try:
        yield command
    finally:
        for process in command.family() if command.process.is_running() else ():
            process.kill()


def token_in(output: str) -> str:
    """The token in the address that `serve` has printed."""
    found = re.search(r"Dagster runs on http\S+\?token=(\S+)", output)
    assert found, output
    return found[1]


def all_gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
