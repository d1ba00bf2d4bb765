"""The processes behind a slot, on an inference host: a model's server, and what keeps it running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any, Dict, List, Optional, cast

from orchestrator.resources.targets.host_agent.haproxy import Address, Refused, wait_until

RECORD = "deployed.json"
LOG_BYTES = 8 << 20
STOP_SECONDS = 15
LONGEST_RESTART_PAUSE = 30


def birth(pid: int) -> Optional[str]:
    """What tells a process from a later one of the same number; None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"


class Slot:
    """What we run for one slot."""

    def __init__(self, base: str, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.folder = os.path.join(base, "slots", name)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def read(self, name: str) -> Dict[str, Any]:
        try:
            with open(self.path(name)) as file:
                return cast(Dict[str, Any], json.load(file))
        except (OSError, ValueError):
            return {}

    def record(self) -> Optional[str]:
        """The text of the record of what is served here; None: nothing."""
        try:
            with open(os.path.join(self.path("release"), RECORD)) as file:
                return file.read()
        except OSError:
            return None

    def release(self) -> Optional[str]:
        """The folder of what is served here."""
        try:
            return os.path.basename(os.readlink(self.path("release")))
        except OSError:
            return None

    def started_at(self) -> float:
        return float(self.read("job.json").get("started_at", 0))

    def processes(self) -> List[int]:
        """Those of ours that live: the keeper and the server."""
        noted = (self.read("keeper.json"), self.read("server.json"))
        return [each["pid"] for each in noted if each.get("birth") and birth(each["pid"]) == each["birth"]]

    def is_kept(self) -> bool:
        return bool(self.processes())

    def listens(self) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET) as probe:
            probe.settimeout(2)
            return probe.connect_ex(self.address) == 0

    def exits(self) -> List[str]:
        try:
            with open(self.path("exits")) as file:
                return file.read().split()
        except OSError:
            return []

    def log_end(self) -> str:
        try:
            with open(self.path("log"), "rb") as file:
                file.seek(max(0, os.path.getsize(self.path("log")) - 4000))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-25:])
        except OSError:
            return ""

    def start(self, base: str, release: str, serve: str) -> None:
        os.makedirs(self.folder, exist_ok=True)
        for name in ("exits", "log", "log.1", "keeper.json", "server.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))
        replace_link(os.path.join("..", "..", "releases", os.path.basename(release)), self.path("release"))
        host, port = self.address
        for word, value in (("{model}", release), ("{host}", host), ("{port}", str(port))):
            serve = serve.replace(word, value)
        write_json(self.path("job.json"), command=serve, started_at=time.time(), model=release, port=port)
        with open(os.devnull, "r+b") as nothing:
            keeper = subprocess.Popen(
                [sys.executable, os.path.join(base, "agent.py"), "keep", self.folder],
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                start_new_session=True,
                cwd=base,
            )
        write_json(self.path("keeper.json"), pid=keeper.pid, birth=birth(keeper.pid))

    def forget(self) -> None:
        """What was served here never was in use."""
        for name in ("job.json", "release"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))

    def stop(self) -> None:
        """End our processes here; the server gets its time to end what it has begun."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS + 5), (signal.SIGKILL, 10)):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    if number == signal.SIGKILL:
                        os.killpg(pid, number)
                    else:
                        os.kill(pid, number)
            if wait_until(lambda: not self.processes(), seconds):
                return
        raise Refused("host", f"the processes {self.processes()} of slot {self.name} do not end")


def keep(folder: str) -> None:
    """Run a slot's server, again whenever it ends, until SIGTERM."""
    with open(os.path.join(folder, "job.json")) as file:
        job = json.load(file)
    ending = threading.Event()
    servers: List[int] = []

    def send(number: int) -> None:
        for group in servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def end(*_: object) -> None:
        ending.set()
        send(signal.SIGTERM)
        last = threading.Timer(STOP_SECONDS, send, [signal.SIGKILL])
        last.daemon = True
        last.start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environment = {**os.environ, "PATH": search_path(job["command"]), "MODEL_DIR": job["model"]}
    environment["PORT"] = str(job["port"])
    failures = 0
    while not ending.is_set():
        started = time.monotonic()
        server = subprocess.Popen(
            ["/bin/sh", "-c", job["command"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd=job["model"],
        )
        servers[:] = [server.pid]
        with contextlib.suppress(OSError):  # a full disk: the keeper knows its server all the same
            write_json(os.path.join(folder, "server.json"), pid=server.pid, birth=birth(server.pid))
        if ending.is_set():
            end()
        log = os.path.join(folder, "log")
        threading.Thread(target=keep_log, args=(server.stdout, log), daemon=True).start()
        server.wait()
        send(signal.SIGKILL)  # whatever it has left behind
        servers.clear()
        with contextlib.suppress(OSError), open(os.path.join(folder, "exits"), "a") as file:
            file.write(f"{server.returncode}\n")
        failures = 0 if time.monotonic() - started > 60 else failures + 1
        ending.wait(min(LONGEST_RESTART_PAUSE, 0.5 * 2 ** min(failures, 10)))


def search_path(command: str) -> str:
    """PATH, with the folder of the command's program in it: `mlflow models serve` looks for uvicorn there."""
    first = (command.split() or [""])[0]
    folders = [os.path.dirname(first)] if os.path.isabs(first) else []
    home = os.path.expanduser("~/.local/bin")
    return ":".join(filter(None, [*folders, os.environ.get("PATH", ""), home, "/usr/local/bin", "/usr/bin", "/bin"]))


def keep_log(pipe: IO[bytes], path: str) -> None:
    """Write what a server says into its log, and begin a new one when that is full."""
    with pipe:
        while True:
            with open(path, "ab", buffering=0) as file:
                while file.tell() < LOG_BYTES:
                    piece = os.read(pipe.fileno(), 65536)
                    if not piece:
                        return
                    with contextlib.suppress(OSError):  # a full disk costs the log, not the server
                        file.write(piece)
            os.replace(path, f"{path}.1")


def write_json(path: str, **values: object) -> None:
    write(path, json.dumps(values))


def write(path: str, text: str) -> None:
    following = f"{path}.next"
    with open(following, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(following, path)


def replace_link(target: str, path: str) -> None:
    following = f"{path}.next"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(following)
    os.symlink(target, following)
    os.replace(following, path)
