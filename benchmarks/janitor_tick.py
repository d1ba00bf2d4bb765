"""How long a tick of the janitor takes on a bad day: thousands of failed runs of others, and many of ours.

    python -m benchmarks.janitor_tick [--others 5000] [--ours 1000] [--ticks 5]

A real Dagster instance (SQLite, the project's dagster.yaml), the sandbox's EC2 and a real MLflow server, each empty.
Half of our runs are retries of the other half, all died with their workers, and each has been retried as often as may
be: all that a tick has to do is to find that out. Prints one line a tick: seconds by the clock, seconds of this
process's CPU time (on a busy machine, the figure to look at), and what the tick said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import cast

import dagster as dg

from orchestrator_sandbox.ec2.server import Ec2Server
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.run_records import failed_run, insert

PROJECT = Path(__file__).parents[1]
ENDED = timedelta(minutes=10)


def fill(instance: dg.DagsterInstance, *, others: int, ours: int) -> None:
    """Write the runs."""
    tags = {"dagster/max_retries": "1"}
    first = [failed_run("training_training", partition=str(number), tags=tags) for number in range(ours // 2)]
    retries = [
        failed_run(
            "training_training",
            partition=run.tags["dagster/partition"],
            parent_run_id=run.run_id,
            root_run_id=run.run_id,
            tags={**tags, "dagster/root_run_id": run.run_id, "dagster/parent_run_id": run.run_id},
        )
        for run in first
    ]
    foreign = [failed_run("nightly_report", partition=f"2031-05-{number % 28 + 1:02d}") for number in range(others)]
    insert(instance, [*first, *retries, *foreign], ended=ENDED)


def main() -> None:
    """Fill an instance and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--others", type=int, default=5000, help="failed runs of an unrelated job")
    parser.add_argument("--ours", type=int, default=1000, help="failed runs of our pipeline")
    parser.add_argument("--ticks", type=int, default=5, help="how many to measure")
    arguments = parser.parse_args()

    with ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        ec2 = exits.enter_context(Ec2Server(directory / "ec2"))
        mlflow = exits.enter_context(MlflowServer(directory / "mlflow"))
        home = directory / "dagster"
        home.mkdir()
        shutil.copy(PROJECT / "dagster.yaml", home)
        os.environ.update({**ec2.env(), **mlflow.env(), "ORCHESTRATOR_DEPLOYMENT": "benchmark"})
        instance = exits.enter_context(dg.DagsterInstance.from_config(str(home)))
        fill(instance, others=arguments.others, ours=arguments.ours)

        from orchestrator.definitions import defs  # reads the environment that is only now there

        repository = defs.get_repository_def()
        janitor = repository.get_sensor_def("janitor")
        cursor: str | None = None
        for _ in range(arguments.ticks):
            context = dg.build_sensor_context(instance=instance, repository_def=repository, cursor=cursor)
            begun, worked = time.perf_counter(), time.process_time()
            result = cast(dg.SensorResult, janitor(context))
            seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - worked
            cursor = result.cursor
            summary = result.skip_reason.skip_message if result.skip_reason else ""
            sys.stdout.write(f"{seconds:6.2f} s  {cpu_seconds:6.2f} s  {summary}\n")


if __name__ == "__main__":
    main()
