"""A light training in place of `mlflow run`, and the ledger in which each one writes down what it does."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.names import MlflowTag

STEPS = 5
STEP_SECONDS = 0.9
BEAT_SECONDS = 0.2
"""Pause between two signs of life in the ledger."""
PROGRAM = '''#!{python} -ISu
"""Trains as `mlflow run` would: fills the run of --run-id, rides out an MLflow that is away, exits 0 or 1."""

import json, os, sys, threading, time, urllib.request

run = sys.argv[sys.argv.index("--run-id") + 1]
ledger = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
api = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/"


def write(event, **facts):
    line = dict(event=event, at=time.time(), run=run, pid=os.getpid(), home=os.environ["HOME"], **facts)
    os.write(ledger, json.dumps(line).encode() + b"\\n")


def live():
    while True:
        write("beat")
        time.sleep({beat})


def ask(path, payload=None):
    deadline = time.monotonic() + 150  # as long as MLflow's own client repeats a request
    while True:
        try:
            body = None if payload is None else json.dumps(payload).encode()
            request = urllib.request.Request(api + path, body, {{"Content-Type": "application/json"}})
            return json.loads(urllib.request.urlopen(request, timeout=10).read())
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


write("begin")
threading.Thread(target=live, daemon=True).start()  # also while it waits for MLflow
tags = {{tag["key"]: tag["value"] for tag in ask("runs/get?run_id=" + run)["run"]["data"]["tags"]}}
for step in range({steps}):
    time.sleep({seconds})
    point = dict(run_id=run, key="accuracy", value=step / 10, timestamp=time.time_ns() // 1000000, step=step)
    ask("runs/log-metric", point)
    write("step", step=step)
    print("step", step, flush=True)
    if step == 1 and os.path.exists(os.path.join({failing!r}, tags[{partition_tag!r}])):
        write("end", status=1)
        sys.exit("ValueError: the data is not what it was")
ask("runs/update", dict(run_id=run, status="FINISHED", end_time=time.time_ns() // 1000000))
write("end", status=0)
'''


@dataclass(frozen=True)
class Training:
    """One process that has trained.

    Attributes:
        run: the MLflow run that it filled.
        instance: where it ran.
        began: when it began, in seconds since the epoch.
        seen: when it last wrote something; its end, if it came to one.
        steps: those it has logged.
        status: its exit status; None when it was ended from outside, or still runs.
    """

    run: str
    instance: str
    pid: int
    began: float
    seen: float
    steps: tuple[int, ...]
    status: int | None


class TrainingLedger:
    """The program, and what its processes wrote down outside of all machines.

    Args:
        directory: holds both.
    """

    def __init__(self, directory: Path) -> None:
        self.program = directory / "mlflow"
        self._file = directory / "ledger"
        self._failing = directory / "failing"
        self._failing.mkdir(parents=True, exist_ok=True)
        self.program.write_text(
            PROGRAM.format(
                python=sys.executable,
                ledger=str(self._file),
                failing=str(self._failing),
                steps=STEPS,
                seconds=STEP_SECONDS,
                beat=BEAT_SECONDS,
                partition_tag=MlflowTag.PARTITION,
            )
        )
        self.program.chmod(0o755)

    def let_fail(self, partition: str) -> None:
        """From now on, every training of this build exits 1."""
        (self._failing / partition).touch()

    def trainings(self) -> list[Training]:
        """All trainings, the oldest first."""
        return read(self._file.read_text().splitlines() if self._file.exists() else ())


def read(lines: Iterable[str]) -> list[Training]:
    """Make trainings of the lines of a ledger."""
    entries_of = defaultdict(list)
    for line in lines:
        entry = json.loads(line)
        entries_of[entry["run"], entry["home"], entry["pid"]].append(entry)
    trainings = [
        Training(
            run=run,
            instance=next((part for part in Path(home).parts if part.startswith("i-")), home),
            pid=pid,
            began=entries[0]["at"],
            seen=entries[-1]["at"],
            steps=tuple(entry["step"] for entry in entries if entry["event"] == "step"),
            status=next((entry["status"] for entry in entries if entry["event"] == "end"), None),
        )
        for (run, home, pid), entries in entries_of.items()
    ]
    return sorted(trainings, key=lambda training: training.began)
