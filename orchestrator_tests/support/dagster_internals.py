"""Dagster's private API as far as tests need it, in one place to mend; for tests of sensors, retries, run history."""

from __future__ import annotations

from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.instigation_logger import get_instigation_log_records
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.errors import DagsterRunAlreadyExists, DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEvent, DagsterEventType, RunFailureReason, StepMaterializationData
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage import tags as dagster_tags
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.event_log.base import EventLogStorage
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.tags import PARENT_RUN_ID_TAG
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget, ModuleTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._serdes import deserialize_value, serialize_value
from dagster._symbol_annotations.public import is_public

__all__ = [
    "DATA_VERSION_TAG",
    "PARENT_RUN_ID_TAG",
    "BulkActionStatus",
    "BulkActionsFilter",
    "DagsterRunAlreadyExists",
    "DagsterUserCodeUnreachableError",
    "EmptyWorkspaceTarget",
    "EventLogConsumerDaemon",
    "EventLogStorage",
    "InstigatorType",
    "LaunchRunContext",
    "ModuleTarget",
    "PartitionBackfill",
    "RegisteredCodeLocationOrigin",
    "RemoteRepositoryOrigin",
    "RunFailureReason",
    "RunTagsTable",
    "RunsTable",
    "SensorExecutionData",
    "SqlRunStorage",
    "StepMaterializationData",
    "TickData",
    "TickStatus",
    "WorkerStatus",
    "WorkspaceProcessContext",
    "auto_reexecution_should_retry_run",
    "create_test_daemon_workspace_context",
    "dagster_tags",
    "deserialize_value",
    "get_instigation_log_records",
    "is_public",
    "serialize_value",
    "starting_event",
]


def starting_event(run: DagsterRun) -> DagsterEvent:
    """What Dagster's queue reports before it hands a run to the launcher."""
    return DagsterEvent(event_type_value=DagsterEventType.PIPELINE_STARTING.value, job_name=run.job_name)
