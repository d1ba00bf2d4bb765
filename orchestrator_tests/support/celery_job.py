"""A job that waits for a file; what the tests of the Celery launcher launch."""

import gc
import json
import logging
import sys
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


FORGED = '{"timestamp": "", "level": "info", "logger": "orchestrator.operate.web.audit", "event": "forged"}'


@dg.op(config_schema={"folder": str})
def talk(context: dg.OpExecutionContext) -> None:
    sys.stdout.write(f"Epoch 1/3\n{FORGED}\n")
    sys.stdout.flush()
    context.log.info("Training begins")
    logging.getLogger("paramiko").warning("Reconnected")
    sys.stderr.write("a word of a library\n")
    (Path(context.op_config["folder"]) / BEGUN).touch()
    raise ValueError("no data")


@dg.op(config_schema={"folder": str})
def write_inheritance(context: dg.OpExecutionContext) -> None:
    facts = {"frozen": gc.get_freeze_count(), "modules": sorted(sys.modules)}
    (Path(context.op_config["folder"]) / BEGUN).write_text(json.dumps(facts))


@dg.job(executor_def=dg.in_process_executor)
def inheriting() -> None:
    write_inheritance()


@dg.job(executor_def=dg.in_process_executor)
def talking() -> None:
    talk()
