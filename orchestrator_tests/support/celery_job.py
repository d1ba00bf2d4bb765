"""A job that waits for a file; what the tests of the Celery launcher launch."""

import time
from pathlib import Path

import dagster as dg

from orchestrator import names

BEGUN = "begun"
GO = "go"
CLEANED = "cleaned"


@dg.op(config_schema={"folder": str})
def wait_for_file(context: dg.OpExecutionContext) -> None:
    folder = Path(context.op_config["folder"])
    (folder / BEGUN).touch()
    try:
        while not (folder / GO).exists():
            time.sleep(0.05)
    finally:
        (folder / CLEANED).touch()


@dg.job(executor_def=dg.in_process_executor)
def waiting() -> None:
    wait_for_file()


@dg.job(executor_def=dg.in_process_executor, tags={names.RunTag.LEASE_UNTIL: "2100-01-01T00:00:00Z"})
def leased() -> None:
    wait_for_file()
