"""What a worker does with a run: what `dagster api execute_run` does, an interrupt included."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import dagster as dg
from celery import Celery
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster._utils.interrupts import capture_interrupts
from dagster_celery.config import TASK_EXECUTE_JOB_NAME

from orchestrator.log_lines import LinePipes


def declare_task(app: Celery, *, pipes: LinePipes | None = None) -> None:
    """Declare the task that Dagster's launcher sends, instead of its own.

    That one is interrupted wherever it is; this one where Dagster expects it, and in the next such place otherwise.

    Args:
        app: whose task it is.
        pipes: where all that a run writes is written to, as JSON.
    """

    @app.task(name=TASK_EXECUTE_JOB_NAME, track_started=True)  # type: ignore[untyped-decorator]
    def execute_job(execute_job_args_packed: Any) -> int:
        arguments = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs)
        streams = pipes.redirected(arguments.run_id) if pipes else nullcontext()
        with streams, capture_interrupts(), dg.DagsterInstance.get() as instance:
            return _execute_run_command_body(
                arguments.run_id, instance, lambda _event: None, set_exit_code_on_failure=True
            )
