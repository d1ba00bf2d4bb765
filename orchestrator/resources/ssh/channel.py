"""Feeds and reads one command on an open SSH channel, and notices when nobody is there any more."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

import paramiko

FAULTS = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises when a connection fails."""

KEPT_BYTES = 1 << 20
"""Of what `run` is answered, so much is kept of each stream."""

_CHUNK = 1 << 15
POLL_MS = 500  # a cancel is an exception in the main thread: never stay in one call for longer


@dataclass(frozen=True)
class Completed:
    """A command that has ended.

    Attributes:
        exit_status: None when a signal killed it.
        stdout: its output, at most `KEPT_BYTES` of it.
        stderr: its complaints, at most `KEPT_BYTES` of them.
    """

    exit_status: int | None
    stdout: bytes
    stderr: bytes


class ExchangeError(Exception):
    """The connection is of no use any more; the message says why."""


def exchange(
    channel: paramiko.Channel,
    *,
    stdin: bytes,
    on_stdout: Callable[[bytes], object],
    on_stderr: Callable[[bytes], object],
    silence_seconds: float,
    timeout_seconds: float | None,
) -> int | None:
    """Feed the command its input and pass on what it says, both at once, until it ends.

    Args:
        channel: on which the command was started.
        stdin: what it reads; left unread when the command ends first.
        on_stdout: takes each piece of its output.
        on_stderr: takes each piece of its complaints.
        silence_seconds: how long it may say nothing.
        timeout_seconds: how long it may take; None for no limit.

    Returns:
        The exit status; None when there was none, for a signal or the connection's end.

    Raises:
        ExchangeError: it was silent for too long, took too long, or the connection failed.
    """
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    unsent: memoryview | None = memoryview(stdin)
    started = heard = time.monotonic()
    while True:
        over = channel.eof_received or channel.closed
        try:
            out = channel.recv(_CHUNK) if channel.recv_ready() else b""
            err = channel.recv_stderr(_CHUNK) if channel.recv_stderr_ready() else b""
        except FAULTS as error:  # to read means to write, too: it makes room in the window
            raise ExchangeError(str(error) or "the connection broke") from error
        if out:
            on_stdout(out)
        if err:
            on_stderr(err)
        if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
            raise ExchangeError(f"the command did not end within {timeout_seconds:g} s")
        if out or err:
            heard = time.monotonic()
            continue
        if over and channel.exit_status_ready():
            # -1 stands for none: RFC 4254 sends exit-signal instead, which paramiko does not read.
            return channel.exit_status if channel.exit_status >= 0 else None
        if time.monotonic() - heard > silence_seconds:
            raise ExchangeError(f"nothing came for {silence_seconds:g} s")
        if unsent is not None and channel.send_ready():
            unsent = _feed(channel, unsent)
            continue
        poller.poll(20 if over or unsent is not None else POLL_MS)


def _feed(channel: paramiko.Channel, unsent: memoryview) -> memoryview | None:
    """Send a piece, and after the last one the end of the input; what is left, None after the end."""
    try:
        if unsent:
            sent = channel.send(bytes(unsent[:_CHUNK]))
            return unsent[sent:] if sent else None
        channel.shutdown_write()
    except FAULTS:
        return None  # reading will tell whether the command ended, or the connection
    return None


def close(channel: paramiko.Channel) -> None:
    """Close a channel, whether or not its connection is there."""
    with contextlib.suppress(*FAULTS):
        channel.close()
