"""Tells systemd when `serve` is up, for units of `Type=notify`."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send systemd a state, if it has asked for it.

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

    Args:
        state: such as READY=1.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"  # of the abstract namespace
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), address)
