"""A run that has imported what a training's run imports, and waits as it does; what `run_workers` launches."""

# No `from __future__ import annotations` here: Dagster reads the annotations of ops as objects.

import time
from pathlib import Path

import boto3
import dagster as dg
import paramiko

import orchestrator.definitions as _  # noqa: F401 - what a training's run imports


@dg.op(config_schema={"folder": str})
def wait(context: dg.OpExecutionContext) -> None:
    """Wait for a file."""
    ec2 = boto3.client("ec2", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")  # noqa: S106
    ssh = paramiko.SSHClient()
    folder = Path(context.op_config["folder"])
    (folder / "begun").write_text(str(time.time()))
    while not (folder / "go").exists():
        time.sleep(0.1)
    context.log.info(f"{ec2} {ssh}")


@dg.job(executor_def=dg.in_process_executor)
def waiting() -> None:
    """One step."""
    wait()


defs = dg.Definitions(jobs=[waiting])
