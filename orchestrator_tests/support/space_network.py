"""The network of a Hugging Face Space: what it lets out, and the world around it; for tests with network namespaces."""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

WORLD, SPACE = "10.231.7.1", "10.231.7.2"

RULES = (
    "-A OUTPUT -o lo -j ACCEPT",
    "-A OUTPUT -m state --state ESTABLISHED,RELATED -j ACCEPT",
    "-A OUTPUT -p tcp -m multiport --dports 80,443,8080 -j ACCEPT",
    "-P OUTPUT DROP",
)
"""https://huggingface.co/docs/hub/spaces-overview#networking"""

REACHES = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
"""Python that ends well when a TCP port can be reached."""


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _pass_on(client: socket.socket, port: int) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        back = threading.Thread(target=_pump, args=(server, client), daemon=True)
        back.start()
        _pump(client, server)
        back.join()


@contextmanager
def relay(port: int, *, to: int) -> Iterator[None]:
    """What a proxy before a database does: listens in the world, and passes on."""
    with socket.create_server((WORLD, port)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=_pass_on, args=(client, to), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


@contextmanager
def cable(pid: int) -> Iterator[None]:
    """Between this machine and a process that has a network of its own, whose end lets out what a Space does."""
    name = f"sp{secrets.token_hex(4)}"
    inside = ["nsenter", "--target", str(pid), "--net"]
    commands = [
        ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid)],
        ["ip", "addr", "add", f"{WORLD}/30", "dev", name],
        ["ip", "link", "set", name, "up"],
        [*inside, "ip", "addr", "add", f"{SPACE}/30", "dev", "eth0"],
        [*inside, "ip", "link", "set", "eth0", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
        *([*inside, "iptables", *rule.split()] for rule in RULES),
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
