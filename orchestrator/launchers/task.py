"""What a worker does with a run: what `dagster api execute_run` does, an interrupt included."""

from __future__ import annotations

from typing import Any

import dagster as dg
from celery import Celery
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster._utils.interrupts import capture_interrupts
from dagster_celery.config import TASK_EXECUTE_JOB_NAME


def declare_task(app: Celery) -> None:
    """Declare the task that Dagster's launcher sends, instead of its own.

    That one is interrupted wherever it is; this one where Dagster expects it, and in the next such place otherwise.
    """

    @app.task(name=TASK_EXECUTE_JOB_NAME, track_started=True)  # type: ignore[untyped-decorator]
    def execute_job(execute_job_args_packed: Any) -> int:
        arguments = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs)
        with capture_interrupts(), dg.DagsterInstance.get() as instance:
            return _execute_run_command_body(
                arguments.run_id, instance, lambda _event: None, set_exit_code_on_failure=True
            )
