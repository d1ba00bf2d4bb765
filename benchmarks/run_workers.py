"""What a waiting training costs where runs live, and how long its start, its cancel and the loss of its worker take.

    python -m benchmarks.run_workers --launcher celery

Against the sandbox; the training only waits. Celery needs Debian's redis-server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from orchestrator.names import Step
from orchestrator_sandbox.chaos.attempts import AttemptsApi, DagsterAttempt
from orchestrator_sandbox.chaos.lab import FaultLab
from orchestrator_sandbox.stack import JOB
from orchestrator_tests.support.celery_workers import RedisServer, kill_all_of
from orchestrator_tests.support.waiting import until

WAITS = "#!/bin/sh\nexec sleep 3600\n"
MB = 1024 * 1024
PATIENCE = 600


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", choices=["local", "celery"], default="local")
    parser.add_argument("--runs", type=int, default=4, help="trainings that wait at once (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        waits = Path(folder, "mlflow")
        waits.write_text(WAITS)
        waits.chmod(0o755)
        settings = {"MLFLOW_COMMAND": str(waits)}
        if options.launcher == "celery":
            settings["CELERY_BROKER_URL"] = stack.enter_context(RedisServer(Path(folder, "redis"))).url
        lab = stack.enter_context(_lab(Path(folder, "lab"), settings))
        workers = []
        if options.launcher == "celery":
            for name in ("one", "two"):
                words = ("-m", "orchestrator.cli", "worker", "--slots", str(options.runs), "--name", name)
                workers.append(lab.stack.dagster_process(*words))
        dagster = stack.enter_context(lab.dagster())
        measure(lab, dagster, runs=options.runs)
        if workers:
            seconds = _lose(lab, dagster, all_of=True)
            _show("loss of a whole worker, until the other one follows the training, s", seconds)


def measure(lab: FaultLab, dagster: AttemptsApi, *, runs: int) -> None:
    """All but the loss of a whole worker."""
    until(lambda: _training(dagster), seconds=PATIENCE)  # the first commit's, which warms everything up
    for _ in range(runs - 1):
        lab.stack.jenkins.add_build(JOB, commit=lab.stack.git.head())
    until(lambda: len(_training(dagster)) >= runs, seconds=PATIENCE)
    attempts = _training(dagster)
    _show("load of this machine", psutil.getloadavg()[0])
    families = [_family(dagster, attempt) for attempt in attempts]
    _show("memory of a waiting training's process alone (USS), MB", _mean(families, lambda family: family[:1]))
    _show("memory of all its processes (USS), MB", _mean(families, lambda family: family))
    _show("processes of a waiting training", sum(map(len, families)) / len(families))
    _show("start: from leaving the queue to the first step, s", sum(_start(dagster, run) for run in attempts) / runs)
    _show("loss of the run's process, until the training is followed again, s", _lose(lab, dagster, all_of=False))
    victim = _training(dagster)[0]
    began = time.monotonic()
    dagster.cancel(victim.id)
    until(lambda: dagster.run(victim.id).status == "CANCELED", seconds=PATIENCE, every=0.1)
    _show("cancel, until CANCELED and its instance terminated, s", time.monotonic() - began)


def _lose(lab: FaultLab, dagster: AttemptsApi, *, all_of: bool) -> float:
    victim = _training(dagster)[-1]
    process = dagster.worker(victim.id)
    assert process is not None  # noqa: S101 - it trains
    began = time.monotonic()
    kill_all_of(psutil.Process(process).ppid() if all_of else process)
    until(
        lambda: any(run.partition == victim.partition and run.id != victim.id for run in _training(dagster)),
        seconds=PATIENCE,
        every=0.2,
    )
    return time.monotonic() - began


def _training(dagster: AttemptsApi) -> list[DagsterAttempt]:
    return [attempt for attempt in dagster.under_way() if attempt.step == Step.TRAIN]


def _family(dagster: AttemptsApi, attempt: DagsterAttempt) -> list[psutil.Process]:
    process = dagster.worker(attempt.id)
    assert process is not None  # noqa: S101 - it trains
    return [psutil.Process(process), *psutil.Process(process).children(recursive=True)]


def _mean(families: list[list[psutil.Process]], part: Callable[[list[psutil.Process]], list[psutil.Process]]) -> float:
    return sum(process.memory_full_info().uss for family in families for process in part(family)) / len(families) / MB


def _start(dagster: AttemptsApi, attempt: DagsterAttempt) -> float:
    answer = dagster._ask(
        """query($id: ID!) { runOrError(runId: $id) { __typename ... on Error { message } ... on Run {
             stats { ... on RunStatsSnapshot { launchTime } } stepStats { startTime } } } }""",
        {"id": attempt.id},
    )
    first = min(step["startTime"] for step in answer["stepStats"] if step["startTime"])
    return float(first - answer["stats"]["launchTime"])


@contextmanager
def _lab(directory: Path, settings: Mapping[str, str]) -> Iterator[FaultLab]:
    with FaultLab(directory, settings=settings) as lab:
        yield lab


def _show(what: str, figure: float) -> None:
    sys.stdout.write(f"{what}: {figure:.1f}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
