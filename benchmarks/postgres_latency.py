"""What a distant PostgreSQL costs: seconds per event, and seconds more for a whole training in the sandbox.

`python -m benchmarks.postgres_latency`; needs Debian's PostgreSQL, see `make test-services`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import dagster as dg
from rich.console import Console

from orchestrator.operate.home import project_file
from orchestrator_sandbox.demo.display import LineView
from orchestrator_sandbox.demo.loop import DemoLoop
from orchestrator_sandbox.demo.project import another_training
from orchestrator_sandbox.proxy import TcpRelay
from orchestrator_sandbox.stack import Stack
from orchestrator_tests.support.postgres import Postgres

EVENTS = 50


STEPS = 5
"""Of a training."""


@dg.op
def step(before: int) -> int:
    """Log a line, as a step of a training does."""
    dg.get_dagster_logger().info("a line")
    return before + 1


@dg.op
def first() -> int:
    """Begin."""
    return 0


@dg.job(executor_def=dg.in_process_executor)
def five_steps() -> None:
    """As many steps and events as a training has, which do nothing."""
    number = first()
    for count in range(1, STEPS):
        number = step.alias(f"step_{count}")(number)


def opening(url: str) -> Mapping[str, float]:
    """Seconds until a process has Dagster open, and per event and per log line after that."""
    with tempfile.TemporaryDirectory() as home, mock.patch.dict("os.environ", {"DAGSTER_POSTGRES_URL": url}):
        shutil.copy(project_file("dagster.yaml"), home)
        began = time.perf_counter()
        with dg.DagsterInstance.from_config(home) as instance:
            opened = time.perf_counter() - began
            run = instance.create_run_for_job(five_steps)
            laps = []
            for number in range(EVENTS):
                began = time.perf_counter()
                instance.report_engine_event(f"event {number}", run)
                laps.append(time.perf_counter() - began)
            began = time.perf_counter()
            result = five_steps.execute_in_process(instance=instance)
            ran = time.perf_counter() - began
    return {
        "open": round(opened, 2),
        "event_median": round(statistics.median(laps), 4),
        "event_worst": round(max(laps), 3),
        "run_of_five_steps": round(ran, 2),
        "its_events": len(result.all_events),
    }


def training(server: Postgres, relay: TcpRelay) -> float:
    """Seconds from the launch of a training's run to its end."""
    database = server.new_database()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DAGSTER_POSTGRES_URL": server.url(database, port=relay.port)}
        with Stack(Path(folder), settings=settings) as stack:
            loop = DemoLoop(stack, started=time.monotonic())
            loop.first_model(LineView(Console(file=io.StringIO())), commits=[another_training()])
            if faults := loop.outcome.faults():
                raise SystemExit(f"no model was trained: {'; '.join(faults)}")
    query = "SELECT end_time - extract(epoch FROM create_timestamp) FROM runs"
    ((seconds,),) = server.query(query, database=database)
    return float(seconds)


def main() -> int:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--milliseconds", type=float, default=30, help="added to each round trip")
    parser.add_argument("--trainings", type=int, default=1, help="how many of each; 0: events only")
    options = parser.parse_args()
    with Postgres() as server, TcpRelay(server.port) as relay:
        database = server.new_database()
        result: dict[str, object] = {}
        for delay in (0.0, options.milliseconds):
            relay.delay_seconds = delay / 2000
            url = server.url(database, port=relay.port)
            for _ in range(2):  # the first one makes the tables
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    figures = dict(process.submit(opening, url).result())
            laps = [training(server, relay) for _ in range(options.trainings)]
            if laps:
                figures["training_median"] = round(statistics.median(laps), 1)
            result[f"{delay:g} ms"] = figures
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
