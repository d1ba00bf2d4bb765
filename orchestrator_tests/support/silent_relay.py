"""TCP relays in front of instances: one that has fallen silent passes nothing on, and closes nothing either.

A sandbox machine that is taken away closes its connections, for its processes end. One of AWS's may just stop to
answer, as one behind this relay does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from typing import Self

from orchestrator.resources.ssh.connection import Ssh
from orchestrator.settings.groups import SshSettings


class SilentRelay:
    """Leads to any number of hosts, until told to fall silent about one of them."""

    def __init__(self) -> None:
        self._silent: set[str] = set()
        self._closing = threading.Event()
        self._servers: list[socketserver.ThreadingTCPServer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fall_silent(self, address: str | None) -> None:
        """From now on, nothing comes from this host or goes to it, and no connection to it is closed."""
        self._silent.add(address or "")

    def ssh(self, settings: SshSettings, *, address: str, host_key: str | None) -> Ssh:
        """A connection through here; arguments as of `Ssh`."""
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    relay._pass_on(self.request, address, settings.port)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._servers.append(server)
        port = server.server_address[1]
        return Ssh(settings.model_copy(update={"port": port}), address="127.0.0.1", host_key=host_key)

    def _pass_on(self, here: socket.socket, address: str, port: int) -> None:
        if address in self._silent:
            self._closing.wait()
            return
        with socket.create_connection((address, port)) as there:
            other = {here: there, there: here}
            while not self._closing.is_set():
                readable, _, _ = select.select([here, there], [], [], 0.05)
                for side in readable:
                    data = side.recv(1 << 16)
                    if address in self._silent:
                        self._closing.wait()
                    if not data:
                        return
                    other[side].sendall(data)
