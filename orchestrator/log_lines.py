"""What processes print past all loggers, as JSON too: a process of its own copies it to our standard error.

Our loggers write to standard error; what a training prints goes to standard output. So each has a pipe of its own, and
no line of the second is taken for a record of ours, however well it is forged.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from orchestrator.log_format import OUTPUT, timestamp
from orchestrator.printable import printable, without_colours

_LONGEST_LINE = 64 * 1024
_MESSAGE = 64
"""Bytes of each message to the copying process: a run's ID, or nothing."""


class LinePipes:
    """Pipes whose lines appear on our standard error as JSON.

    The process that copies them is in a session of its own, and ends when nobody writes any more: what outlives us
    never writes to nobody.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._copier = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,
            )

    def pair(self, run_id: str = "") -> tuple[int, int]:
        """New file descriptors for a standard output, of which nothing is believed, and a standard error.

        Args:
            run_id: the Dagster run that all lines belong to; empty: several, or none.
        """
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        try:
            socket.send_fds(self._control, [run_id.encode().ljust(_MESSAGE)], [out, err])
        finally:
            os.close(out)
            os.close(err)
        return out_end, err_end

    @contextlib.contextmanager
    def redirected(self, run_id: str = "") -> Iterator[None]:
        """Standard output and error of this process, and of those that it starts meanwhile, lead there.

        Args:
            run_id: the Dagster run that all lines belong to; empty: several, or none.
        """
        before = [os.dup(1), os.dup(2)]
        try:
            _replace(self.pair(run_id))
            yield
        finally:
            _replace(before)

    def close(self, seconds: float | None) -> None:
        """Hand out no more pairs.

        Args:
            seconds: how long to wait until nobody writes any more, and all is copied; None: not at all.
        """
        self._control.close()
        if seconds is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._copier.wait(seconds)


def _replace(descriptors: Sequence[int]) -> None:
    for stream, target, descriptor in zip((sys.stdout, sys.stderr), (1, 2), descriptors, strict=True):
        stream.flush()
        os.dup2(descriptor, target)
        os.close(descriptor)


def wrapped(line: bytes, *, believed: bool, run_id: str = "") -> bytes:
    """A line as it is when it is a record of ours, else as the event of one.

    Args:
        line: what was written.
        believed: whether it may be a record of ours at all.
        run_id: the run that wrote it.
    """
    own = {"run_id": run_id} if run_id else {}
    if believed and line.startswith(b'{"') and line.rstrip().endswith(b"}"):
        try:
            entry = json.loads(line)
            if {"event", "level", "logger", "timestamp"} <= entry.keys():
                return json.dumps({**own, **entry} if "run_id" not in entry else entry).encode() + b"\n"
        except (ValueError, RecursionError):
            pass  # text that looks like it, perhaps nested thousands deep
    text = without_colours(printable(line.decode(errors="replace"))).strip()
    if not text:
        return b""
    entry = {"timestamp": timestamp(), "level": "info", "logger": OUTPUT, "event": text, **own}
    return json.dumps(entry).encode() + b"\n"


def copy_lines(source: BinaryIO, sink: BinaryIO, *, believed: bool, run_id: str = "") -> None:
    """Copy all lines, each as JSON, until nobody writes any more.

    Args:
        source: what is written.
        sink: takes the JSON.
        believed: whether lines may be records of ours.
        run_id: the run that writes.
    """
    begins = True
    while line := source.readline(_LONGEST_LINE):
        sink.write(wrapped(line, believed=believed and begins, run_id=run_id))
        sink.flush()
        begins = line.endswith(b"\n")


def _copy(descriptor: int, *, believed: bool, run_id: str) -> None:
    with open(descriptor, "rb") as source:
        copy_lines(source, sys.stdout.buffer, believed=believed, run_id=run_id)


def _main(control: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE, 2)
        if not message:
            return  # the threads go on until nobody writes any more
        for descriptor, believed in zip(descriptors, (False, True), strict=True):
            arguments = {"believed": believed, "run_id": message.decode().strip()}
            threading.Thread(target=_copy, args=(descriptor,), kwargs=arguments).start()


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
