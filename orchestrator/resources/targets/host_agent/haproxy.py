"""HAProxy's runtime socket, on an inference host: which slot gets requests, and which one is to."""

from __future__ import annotations

import socket
import time
from typing import Callable, Dict, Tuple

Address = Tuple[str, int]


class Refused(Exception):
    """What the caller is told; `kind` says whose fault it is: `model`, `held` or `host`."""

    def __init__(self, kind: str, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.kind = kind
        self.log = log


class Backend:
    """A backend of HAProxy with two servers on loopback, the slots."""

    def __init__(self, admin_socket: str, name: str) -> None:
        self.socket = admin_socket
        self.name = name

    def ask(self, command: str) -> str:
        """One command on the runtime socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            try:
                connection.connect(self.socket)
            except OSError as error:
                raise Refused("host", f"HAProxy's admin_socket {self.socket}: {error.strerror or error}") from error
            connection.sendall(command.encode() + b"\n")
            answer = b""
            while True:
                piece = connection.recv(65536)
                if not piece:
                    return answer.decode(errors="replace").strip()
                answer += piece

    def slots(self) -> Dict[str, Address]:
        """The slots, in the order of haproxy.cfg: name -> address."""
        answer = self.ask("show servers state " + self.name)
        lines = [line for line in answer.splitlines() if line.strip() and line.strip() != "1"]
        if not lines or not lines[0].startswith("#"):
            raise Refused("host", f"HAProxy has no backend {self.name} ({answer[:200]})")
        columns = lines[0].lstrip("# ").split()
        rows = [dict(zip(columns, line.split())) for line in lines[1:]]
        found = {row["srv_name"]: (row["srv_addr"], int(row["srv_port"])) for row in rows}
        if len(found) != 2 or len(set(found.values())) != 2:
            raise Refused("host", f"backend {self.name} needs two servers of different ports, and has {len(found)}")
        return found

    def figures(self, slot: str) -> Dict[str, str]:
        """What `show stat` says of a slot."""
        lines = self.ask("show stat").splitlines()
        columns = lines[0].lstrip("# ").split(",")
        for line in lines[1:]:
            row = dict(zip(columns, line.split(",")))
            if (row.get("pxname"), row.get("svname")) == (self.name, slot):
                return row
        raise Refused("host", f"HAProxy says nothing about server {self.name}/{slot}")

    def is_in_rotation(self, slot: str) -> bool:
        """Whether requests go there as long as it is healthy."""
        return not self.figures(slot)["status"].startswith(("MAINT", "DRAIN"))

    def is_up(self, slot: str) -> bool:
        """Whether requests go there now."""
        return self.figures(slot)["status"].startswith(("UP", "no check"))

    def set(self, slot: str, state: str) -> None:
        """Let a slot be `ready`, `drain` or `maint`."""
        answer = self.ask(f"set server {self.name}/{slot} state {state}")
        if answer:
            reply = f"HAProxy does not set {self.name}/{slot} to {state}: {answer[:200]}"
            raise Refused("host", f"{reply}; is its socket of `level admin`?")

    def drain(self, slot: str, seconds: float) -> None:
        """Send no new request there, and wait for those that are under way."""
        self.set(slot, "drain")

        def idle() -> bool:
            figures = self.figures(slot)
            return figures["scur"] == "0" and figures["qcur"] == "0"

        wait_until(idle, seconds)
        self.set(slot, "maint")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if condition():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
