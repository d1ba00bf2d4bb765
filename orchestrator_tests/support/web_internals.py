"""What tests need of Dagster's webserver without its promise; not in `dagster_internals`, because it takes a second."""

from __future__ import annotations

from dagster._core.workspace.context import WorkspaceRequestContext  # noqa: TID251 - see above
from dagster._core.workspace.permissions import Permissions  # noqa: TID251 - see above
from dagster_graphql.schema import create_schema
from dagster_webserver.webserver import DagsterWebserver

__all__ = ["DagsterWebserver", "Permissions", "WorkspaceRequestContext", "create_schema"]
