"""Dagster's private API as far as tests need it, in one place to mend; for tests of sensors, retries, run history."""

from __future__ import annotations

from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import PARENT_RUN_ID_TAG
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget, ModuleTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._serdes import deserialize_value, serialize_value

__all__ = [
    "PARENT_RUN_ID_TAG",
    "EmptyWorkspaceTarget",
    "EventLogConsumerDaemon",
    "ModuleTarget",
    "RegisteredCodeLocationOrigin",
    "RemoteRepositoryOrigin",
    "SensorExecutionData",
    "WorkspaceProcessContext",
    "create_test_daemon_workspace_context",
    "deserialize_value",
    "serialize_value",
]
