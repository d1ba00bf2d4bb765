"""Runs on an inference host: keeps releases, and puts one into use in a free slot of HAProxy's backend.

It is sent over SSH for each call and needs Python 3.8 and nothing else. A call is `VERB`, a line of JSON on standard
input, and for `put` bytes after it; the answer is a line of JSON. It leaves on the host, in one directory per backend:

    releases/VERSION/     a model's files and its record; incoming-VERSION while it is being received
    slots/NAME/release -> the release that this slot serves
    slots/NAME/job.json   how it is served; keeper.json, server.json: the processes; log; exits: each time it ended
    agent.py              this file, for the process that keeps a slot's server running
    lock                  one deployment at a time

Which slot is in use, only HAProxy knows: it is asked each time.
https://docs.haproxy.org/2.6/management.html#9.3
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple, cast

Call = Dict[str, Any]
Address = Tuple[str, int]

SOURCE = globals().get("SOURCE", "")
"""This file's own text, where it was not started from a file."""

RECORD = "deployed.json"
LOG_BYTES = 8 << 20
STOP_SECONDS = 15
UP_SECONDS = 30
PREDICTION_SECONDS = 60
LARGEST_ANSWER = 64 << 20
LONGEST_RESTART_PAUSE = 30


class Refused(Exception):
    """What the caller is told; `kind` says whose fault it is: `model`, `held` or `host`."""

    def __init__(self, kind: str, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.kind = kind
        self.log = log


# ---------------------------------------------------------------------------- HAProxy


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


# ---------------------------------------------------------------------------- processes


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
        return [each["pid"] for each in noted if each and birth(each["pid"]) == each["birth"]]

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
        write_json(os.path.join(folder, "server.json"), pid=server.pid, birth=birth(server.pid))
        if ending.is_set():
            end()
        log = os.path.join(folder, "log")
        threading.Thread(target=keep_log, args=(server.stdout, log), daemon=True).start()
        server.wait()
        send(signal.SIGKILL)  # whatever it has left behind
        servers.clear()
        with open(os.path.join(folder, "exits"), "a") as file:
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
            with open(path, "ab") as file:
                while file.tell() < LOG_BYTES:
                    piece = os.read(pipe.fileno(), 65536)
                    if not piece:
                        return
                    file.write(piece)
                    file.flush()
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


# ---------------------------------------------------------------------------- one host


class ServingHost:
    """What a call does."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.base = os.path.abspath(os.path.expanduser(call["directory"]))
        self.releases = os.path.join(self.base, "releases")
        self.backend = Backend(call["admin_socket"], call["backend"])
        self.slots = [Slot(self.base, name, address) for name, address in self.backend.slots().items()]

    def in_use(self) -> List[Slot]:
        """The slots that get requests and are ours, the one that has served longest first."""
        found = [slot for slot in self.slots if self.backend.is_in_rotation(slot.name) and slot.is_kept()]
        return sorted(found, key=Slot.started_at)

    def require_no_stranger(self) -> None:
        for slot in self.slots:
            if not slot.is_kept() and slot.listens():
                server = f"port {slot.address[1]}, which is for server {self.backend.name}/{slot.name}"
                raise Refused("held", f"something that the orchestrator has not started listens on {server}: end it")

    def last_record(self) -> Optional[str]:
        """The record of what is in use; when nothing is, of what was last."""
        slots = self.in_use() or sorted(self.slots, key=Slot.started_at, reverse=True)
        return next((record for record in (slot.record() for slot in slots) if record), None)

    def state(self) -> Call:
        in_use = self.in_use()
        record = in_use[0].record() if in_use else None
        return {"record": record, "slots": [slot.name for slot in in_use], "last": self.last_record()}

    def require_holder(self) -> None:
        record = self.last_record()
        if record is None or self.call["take_over"]:
            return
        mine = json.loads(self.call["record"])
        try:
            theirs = json.loads(record)
            held = any(theirs[key] != mine[key] for key in ("pipeline", "deployment"))
        except (ValueError, LookupError, TypeError):
            held = True
        if held:
            raise Refused("other", record)

    def incoming(self) -> str:
        return os.path.join(self.base, f"incoming-{self.call['folder']}")

    def missing(self) -> Call:
        """Which files are not here yet."""
        self.require_no_stranger()
        self.require_holder()
        os.makedirs(self.incoming(), exist_ok=True)
        kept = os.path.join(self.releases, self.call["folder"])
        found = []
        for file in self.call["files"]:
            if has(self.incoming(), file):
                continue
            if has(kept, file):
                place = os.path.join(self.incoming(), file["path"])
                os.makedirs(os.path.dirname(place), exist_ok=True)
                shutil.copyfile(os.path.join(kept, file["path"]), place)
            else:
                found.append(file["path"])
        return {"missing": found, "free": shutil.disk_usage(self.base).free}

    def put(self) -> Call:
        place = os.path.join(self.incoming(), self.call["path"])
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "r+b" if self.call["offset"] else "wb") as file:
            file.seek(self.call["offset"])
            file.truncate()
            shutil.copyfileobj(sys.stdin.buffer, file)
            return {"size": file.tell()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        os.makedirs(self.releases, exist_ok=True)
        with open(os.path.join(self.base, "lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("host", "another deployment is under way") from None
            yield

    def switch(self) -> Call:
        with self.locked():
            self.require_no_stranger()
            self.require_holder()
            in_use = self.in_use()
            before = in_use[0] if in_use else None
            mine = json.loads(self.call["record"])
            if before is not None and len(in_use) == 1 and self.is_same(before, mine):
                return {"before": before.record(), "slot": before.name}
            free = next(slot for slot in self.slots if slot is not before)
            self.vacate(free)
            release = self.keep_release(before)
            record = before.record() if before else None
            try:
                self.bring_up(free, release)
            except BaseException as error:
                self.backend.set(free.name, "maint")
                end = free.log_end()
                free.stop()
                if isinstance(error, Refused):
                    error.log = end
                raise
            if before is not None:
                self.backend.drain(before.name, self.call["drain_seconds"])
                before.stop()
            self.prune()
            return {"before": record, "slot": free.name}

    def is_same(self, slot: Slot, mine: Call) -> bool:
        try:
            theirs = json.loads(slot.record() or "{}")
        except ValueError:
            return False
        same = all(theirs.get(key) == mine[key] for key in ("model", "version", "run_id", "pipeline", "deployment"))
        return same and all(has(slot.path("release"), file) for file in self.call["files"])

    def vacate(self, slot: Slot) -> None:
        if slot.is_kept() and self.backend.is_in_rotation(slot.name):
            self.backend.drain(slot.name, self.call["drain_seconds"])
        self.backend.set(slot.name, "maint")
        slot.stop()
        if not wait_until(lambda: not slot.listens(), 10):
            raise Refused("held", f"port {slot.address[1]} of slot {slot.name} is taken by something else")

    def keep_release(self, before: Optional[Slot]) -> str:
        """Make a release of what has come."""
        wrong = [file["path"] for file in self.call["files"] if not has(self.incoming(), file)]
        if wrong:
            raise Refused("host", f"these files have not come whole: {', '.join(wrong[:5])}")
        write(os.path.join(self.incoming(), RECORD), self.call["record"])
        taken = before.release() if before else None
        names = [self.call["folder"]] + [f"{self.call['folder']}_{number}" for number in range(2, 100)]
        name = next(name for name in names if name != taken)
        place = os.path.join(self.releases, name)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(self.incoming(), place)
        os.sync()
        return place

    def bring_up(self, slot: Slot, release: str) -> None:
        write(os.path.join(self.base, "agent.py"), SOURCE)
        slot.start(self.base, release, self.call["serve"])
        self.await_health(slot)
        self.predict(slot, release)
        self.backend.set(slot.name, "ready")
        if not wait_until(lambda: self.backend.is_up(slot.name), UP_SECONDS):
            check = self.backend.figures(slot.name).get("last_chk") or "nothing"
            raise Refused("model", f"HAProxy's own health check of slot {slot.name} does not pass: {check}")

    def await_health(self, slot: Slot) -> None:
        deadline = time.monotonic() + self.call["start_seconds"]
        reply = "nothing"
        while time.monotonic() < deadline:
            if slot.exits():
                raise Refused("model", f"the server of the new model ended with status {slot.exits()[0]}")
            try:
                status, _ = ask(slot.address, "GET", self.call["health"], seconds=5)
                if status == 200 and slot.is_kept():
                    return
                reply = str(status)
            except (OSError, http.client.HTTPException) as error:
                reply = str(error)
            time.sleep(0.1)
        limit, health = self.call["start_seconds"], self.call["health"]
        raise Refused("model", f"the server of the new model is not healthy after {limit:g} s: {health} gives {reply}")

    def predict(self, slot: Slot, release: str) -> None:
        path = os.path.join(release, self.call["example"])
        if not self.call["predict"] or not os.path.isfile(path):
            return  # the caller has said so
        with open(path, "rb") as file:
            example = file.read()
        fault = "the new model does not predict for its own input example"
        try:
            status, body = ask(slot.address, "POST", self.call["predict"], example, seconds=PREDICTION_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise Refused("model", f"{fault}: {error or type(error).__name__}") from error
        answer = body[:500].decode(errors="replace")
        if status != 200:
            raise Refused("model", f"{fault}: {status} {answer}")
        found = fault_of(example, body)
        if found:
            raise Refused("model", f"{fault}: {found} in {answer}")

    def prune(self) -> None:
        names = {slot.release() for slot in self.slots}
        others = [name for name in os.listdir(self.releases) if name not in names]
        others.sort(key=lambda name: os.path.getmtime(os.path.join(self.releases, name)), reverse=True)
        for name in others[max(0, self.call["keep"] - len(names)) :]:
            shutil.rmtree(os.path.join(self.releases, name), ignore_errors=True)


def ask(
    address: Address, method: str, path: str, body: Optional[bytes] = None, seconds: float = 10
) -> Tuple[int, bytes]:
    connection = http.client.HTTPConnection(address[0], address[1], timeout=seconds)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read(LARGEST_ANSWER)
    finally:
        connection.close()


def rows_of(example: object) -> Optional[int]:
    """How many rows an input example of MLflow's has; None: it cannot be known."""
    if not isinstance(example, dict):
        return None
    split = example.get("dataframe_split")
    found = split.get("data") if isinstance(split, dict) else None
    for key in ("dataframe_records", "instances", "inputs"):
        found = example.get(key) if found is None else found
    if isinstance(found, dict):  # columns
        lengths = {len(values) for values in found.values() if isinstance(values, list)}
        return lengths.pop() if len(lengths) == 1 else None
    return len(found) if isinstance(found, list) else None


def fault_of(example: bytes, body: bytes) -> Optional[str]:
    """What is wrong with an answer to an input example; None: nothing."""
    try:
        answer = json.loads(body)
    except ValueError:
        return "no JSON"
    if not isinstance(answer, dict) or "predictions" not in answer:
        return "no `predictions`"
    try:
        rows = rows_of(json.loads(example))
    except ValueError:
        return None
    found = answer["predictions"]
    if rows is not None and isinstance(found, list) and len(found) != rows:
        return f"{len(found)} predictions for {rows} rows"
    return None


def has(folder: str, file: Call) -> bool:
    path = os.path.join(folder, file["path"])
    if not os.path.isfile(path) or os.path.getsize(path) != file["size"]:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as content:
        while True:
            piece = content.read(1 << 20)
            if not piece:
                return bool(digest.hexdigest() == file["sha256"])
            digest.update(piece)


def main(verb: str) -> None:
    call = json.loads(sys.stdin.buffer.readline())
    try:
        host = ServingHost(call)
        verbs = {"state": host.state, "missing": host.missing, "put": host.put, "switch": host.switch}
        answer = verbs[verb]()
    except Refused as error:
        answer = {"refused": error.kind, "sentence": str(error), "log": error.log}
    except OSError as error:
        answer = {"refused": "host", "sentence": f"{error.strerror or error}: {error.filename or ''}", "log": ""}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep(sys.argv[2])
    else:
        main(sys.argv[2])
