"""What our webserver needs of Dagster's without its promise is there, and does what we use it for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import dagster as dg
import pytest
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from orchestrator.operate.web import webserver
from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller, Role
from orchestrator.operate.web.gate import CALLER
from orchestrator.operate.web.mutations import name_launches
from orchestrator.operate.web.webserver import RoleContext, Webserver, permissions_of
from orchestrator_tests.support.dagster_internals import EmptyWorkspaceTarget, WorkspaceProcessContext
from orchestrator_tests.support.instances import new_instance
from orchestrator_tests.support.web_internals import (
    DagsterWebserver,
    Permissions,
    WorkspaceRequestContext,
    create_schema,
)

KNOWN_MUTATIONS = {
    "addDynamicPartition", "cancelPartitionBackfill", "deleteAppManagedComponent", "deleteConcurrencyLimit",
    "deletePipelineRun", "deleteRun", "deleteDynamicPartitions", "freeConcurrencySlots", "freeConcurrencySlotsForRun",
    "launchMultipleRuns", "launchPartitionBackfill", "launchPipelineExecution", "launchPipelineReexecution",
    "launchRun", "launchRunReexecution", "logTelemetry", "reexecutePartitionBackfill", "refreshComponentState",
    "reloadRepositoryLocation", "reloadWorkspace", "reportAssetCheckEvaluations", "reportRunlessAssetEvents",
    "resetSchedule", "resetSensor", "resumePartitionBackfill", "scheduleDryRun", "sensorDryRun",
    "setAppManagedComponent", "setAutoMaterializePaused", "setConcurrencyLimit", "setNuxSeen", "setSensorCursor",
    "shutdownRepositoryLocation", "startSchedule", "startSensor", "stopRunningSchedule", "stopSensor",
    "terminatePipelineExecution", "terminateRun", "terminateRuns", "wipeAssets",
}  # fmt: skip
"""Each was looked up: it asks for a permission, or (logTelemetry, setNuxSeen) changes nothing of anybody's."""


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[Webserver]:
    with (
        new_instance() as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget(), version="test") as context,
    ):
        yield Webserver(context, AuditLog(tmp_path))


def connection(**scope: Any) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": [], "path": "/", "query_string": b"", **scope})


def test_a_request_that_has_not_come_through_the_gate_gets_no_context(dagster: Webserver) -> None:
    for marked in ({}, {CALLER: None}, {CALLER: {"role": "admin"}}, {CALLER: "admin"}):
        with pytest.raises(PermissionError, match="through the gate"):
            dagster._make_request_context(connection(**marked))


def asked(app: ASGIApp, method: str, address: str, *headers: tuple[str, str], body: bytes = b"") -> int:
    """The status of the answer, without a server and without the gate."""
    path, _, query = address.partition("?")
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
    }
    with contextlib.suppress(PermissionError):  # Starlette raises it again, after its answer
        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    (status,) = statuses
    return status


@pytest.mark.parametrize("path", ["/", "/runs", "/logs/a/b.out", "/download_debug/a"])
def test_without_the_gate_no_page_is_answered(dagster: Webserver, path: str) -> None:
    assert asked(dagster.create_asgi_app(), "GET", path) == 500


def test_without_the_gate_nothing_is_executed(dagster: Webserver) -> None:
    app = dagster.create_asgi_app()
    json_type = ("Content-Type", "application/json")
    assert asked(app, "POST", "/graphql", json_type, body=b'{"query": "{version}"}') == 500
    assert asked(app, "POST", "/report_asset_materialization/a", json_type, body=b"{}") == 500


@pytest.mark.parametrize("address", ["/graphql?query={version}", "/graphql%0A?query={version}", "/graphql?x=1"])
def test_the_endpoint_itself_takes_graphql_by_post_of_json_only(dagster: Webserver, address: str) -> None:
    app = dagster.create_asgi_app()
    for method in ("GET", "HEAD"):
        assert asked(app, method, address) == 405
        assert asked(app, method, address, ("Accept", "text/html")) == 405
    for kind in ("text/plain", "application/graphql", "Application/JSON", ""):
        assert asked(app, "POST", address, ("Content-Type", kind), body=b"{version}") == 405


@pytest.mark.parametrize("role", Role)
def test_a_caller_s_context_permits_what_his_role_may_do(dagster: Webserver, role: Role) -> None:
    context = dagster._make_request_context(connection(**{CALLER: Caller("x", role)}))
    assert isinstance(context, RoleContext)
    assert context.read_only is (role is Role.VIEWER)
    assert set(context.permissions) == set(Permissions)
    for permission in Permissions:
        allowed = permissions_of(role)[permission].enabled
        assert context.has_permission(permission) is allowed
        assert context.was_permission_checked(permission)
        assert context.has_permission_for_location(permission, "anything") is allowed
    for location in context.permissions_for_location(location_name="orchestrator").items():
        assert location[1].enabled is permissions_of(role)[location[0]].enabled
    assert context.permissions_for_owner(owner="me") == {}
    assert not context.viewer_has_any_owner_definition_permissions()


def test_a_permission_that_a_later_dagster_adds_is_an_admin_s_only(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {**permissions_of(Role.ADMIN), "a_new_one": permissions_of(Role.ADMIN)[Permissions.WIPE_ASSETS]}
    monkeypatch.setattr(webserver, "get_user_permissions", lambda read_only: everything)
    assert permissions_of(Role.ADMIN)["a_new_one"].enabled
    assert not permissions_of(Role.LAUNCHER)["a_new_one"].enabled
    assert not permissions_of(Role.VIEWER)["a_new_one"].enabled


def test_no_mutation_is_new_to_us() -> None:
    mutation = create_schema().graphql_schema.mutation_type
    assert mutation
    assert set(mutation.fields) == KNOWN_MUTATIONS


def test_dagster_has_the_hooks_that_we_override() -> None:
    for name in ("_make_request_context", "graphql_http_endpoint", "create_asgi_app", "make_csp_header"):
        assert callable(getattr(DagsterWebserver, name))
    inspect.signature(DagsterWebserver).bind("context", live_data_poll_rate=2000)
    inspect.signature(WorkspaceRequestContext).bind(
        instance=None, current_workspace=None, process_context=None, version="", source=None, read_only=True
    )
    inspect.signature(dg.DagsterInstance.optimize_for_webserver).bind("self", 1, 2, 3)
    source = inspect.getsource(DagsterWebserver.graphql_http_endpoint)
    assert '"application/json" in content_type' in source  # what our endpoint must agree with


def test_every_route_that_reads_makes_a_context_or_serves_what_is_public(dagster: Webserver) -> None:
    """What Dagster answers without asking for a context is behind the gate only; this list says what that is."""
    routes = [route for route in dagster.create_asgi_app().routes if isinstance(route, Route)]
    others = {route.path for route in routes if route.name != "root_static"}
    assert others == {
        "/server_info", "/dagit_info", "/graphql", "/logs/{path:path}", "/notebook", "/dagit/notebook",
        "/download_debug/{run_id:str}", "/report_asset_materialization/{asset_key:path}",
        "/report_asset_check/{asset_key:path}", "/report_asset_observation/{asset_key:path}", "/{path:path}", "/",
    }  # fmt: skip


def test_the_policy_of_dagster_s_page_has_a_nonce(dagster: Webserver) -> None:
    policy = dagster.make_csp_header("abc")
    assert "'nonce-abc'" in policy
    assert "frame-ancestors" not in policy


def test_a_run_or_backfill_that_nobody_has_launched_is_not_stored() -> None:
    """Every run and backfill is stored by these two methods of Dagster's storage, whatever mutation made it."""

    @dg.job
    def nothing() -> None:
        """Do nothing."""

    with new_instance() as instance:
        name_launches(instance.run_storage)
        with pytest.raises(PermissionError, match="nobody has launched"):
            instance.create_run_for_job(nothing)
        assert instance.get_runs() == []
    for name in ("add_run", "add_backfill"):
        assert callable(getattr(instance.run_storage, name))


def test_every_mutation_is_wrapped(dagster: Webserver) -> None:
    mutation = dagster._graphene_schema.graphql_schema.mutation_type
    assert mutation
    assert {field.resolve.__name__ for field in mutation.fields.values()} == {"resolve_audited"}
