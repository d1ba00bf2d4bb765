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
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from orchestrator.resources.targets.host_agent.haproxy import Address, Backend, Refused, wait_until
from orchestrator.resources.targets.host_agent.slots import RECORD, Slot, keep, write

Call = Dict[str, Any]

SOURCE = globals().get("SOURCE", "")
"""The agent's whole text, where it was not started from a file."""

UP_SECONDS = 30
PREDICTION_SECONDS = 60
LARGEST_ANSWER = 64 << 20
LEFT_SECONDS = 3600
"""A release of which nothing has come for so long is left of a deployment that did not end."""


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
        self.remove_leftovers()
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
                free.forget()
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

    def remove_leftovers(self) -> None:
        names = os.listdir(self.base) if os.path.isdir(self.base) else []
        for place in (os.path.join(self.base, name) for name in names if name.startswith("incoming-")):
            if place != self.incoming() and time.time() - newest(place) > LEFT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)

    def prune(self) -> None:
        names = {slot.release() for slot in self.slots}
        others = [name for name in os.listdir(self.releases) if name not in names]
        others.sort(key=lambda name: os.path.getmtime(os.path.join(self.releases, name)), reverse=True)
        for name in others[max(0, self.call["keep"] - len(names)) :]:
            shutil.rmtree(os.path.join(self.releases, name), ignore_errors=True)


def newest(folder: str) -> float:
    """When something in a folder was changed last."""
    found = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    times = []
    for path in [folder, *found]:
        with contextlib.suppress(OSError):
            times.append(os.lstat(path).st_mtime)
    return max(times, default=time.time())


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
