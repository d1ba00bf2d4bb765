"""Dagster's webserver, with permissions by role.

What Dagster does not promise, and a webserver of our own needs, stands here and nowhere else;
`orchestrator_tests/operate/web/test_webserver.py` compares it with the Dagster that is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import dagster as dg
from dagster._core.workspace.context import (  # noqa: TID251 - see above
    WorkspaceProcessContext,
    WorkspaceRequestContext,
)
from dagster._core.workspace.load_target import WorkspaceFileTarget  # noqa: TID251 - see above
from dagster._core.workspace.permissions import (  # noqa: TID251 - see above
    LOCATION_SCOPED_PERMISSIONS,
    PermissionResult,
    Permissions,
    get_user_permissions,
)
from dagster._utils.log import configure_loggers  # noqa: TID251 - see above
from dagster_webserver.version import __version__ as version
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller, LoginWay, Role
from orchestrator.operate.web.dagster_view import DagsterView
from orchestrator.operate.web.gate import CALLER
from orchestrator.operate.web.mutations import audit_mutations, name_launches
from orchestrator.operate.web.page import log_out_link

LAUNCHING = frozenset(
    {
        Permissions.LAUNCH_PIPELINE_EXECUTION,
        Permissions.LAUNCH_PIPELINE_REEXECUTION,
        Permissions.TERMINATE_PIPELINE_EXECUTION,
        Permissions.LAUNCH_PARTITION_BACKFILL,
        Permissions.CANCEL_PARTITION_BACKFILL,
    }
)

# As Dagster's own command has them by default.
STATEMENT_TIMEOUT_MS = 15_000
POOL_RECYCLE_SECONDS = 3_600
POOL_MAX_OVERFLOW = 20
LIVE_DATA_POLL_MS = 2_000


class RoleContext(WorkspaceRequestContext):
    """A request's context that permits what the caller's role may do, over whatever transport it came."""

    def __init__(self, process_context: WorkspaceProcessContext, *, caller: Caller, source: HTTPConnection) -> None:
        super().__init__(
            instance=process_context.instance,
            current_workspace=process_context.get_current_workspace(),
            process_context=process_context,
            version=process_context.version,
            source=source,
            read_only=caller.role is Role.VIEWER,
        )
        self.caller = caller

    @property
    def permissions(self) -> Mapping[str, PermissionResult]:
        """What this role may do everywhere."""
        return permissions_of(self.caller.role)

    def permissions_for_location(self, *, location_name: str) -> Mapping[str, PermissionResult]:
        """What this role may do in a code location: the same."""
        return {name: result for name, result in self.permissions.items() if name in LOCATION_SCOPED_PERMISSIONS}

    def permissions_for_owner(self, *, owner: str) -> Mapping[str, PermissionResult]:
        """What this role may do with somebody's definitions: no more than elsewhere."""
        return {}


def permissions_of(role: Role) -> Mapping[str, PermissionResult]:
    """Dagster's permissions of a role; one that a later Dagster adds is an admin's only."""
    everything = get_user_permissions(False)
    if role is Role.ADMIN:
        return everything
    allowed = LAUNCHING if role is Role.LAUNCHER else frozenset()
    return {
        name: result if name in allowed else PermissionResult(enabled=False, disabled_reason=f"The role is {role}")
        for name, result in everything.items()
    }


class Webserver(DagsterWebserver[WorkspaceProcessContext, WorkspaceRequestContext]):
    """Dagster's webserver; it answers nobody whom the gate has not let through, and GraphQL by POST only.

    Args:
        process_context: Dagster's.
        audit: where each mutation is written.
        routes: what it answers besides.
    """

    def __init__(
        self, process_context: WorkspaceProcessContext, audit: AuditLog, *, routes: Sequence[BaseRoute] = ()
    ) -> None:
        super().__init__(process_context, live_data_poll_rate=LIVE_DATA_POLL_MS)
        self._own_routes = routes
        mutation = self._graphene_schema.graphql_schema.mutation_type
        if mutation is None:
            raise RuntimeError("Dagster's schema has no mutations; this orchestrator does not know that Dagster")
        audit_mutations(mutation.fields, audit)

    def build_routes(self) -> list[BaseRoute]:
        """Ours, then Dagster's, of which the last takes every path."""
        return [*self._own_routes, *super().build_routes()]  # type: ignore[no-untyped-call]

    def _make_request_context(self, conn: HTTPConnection) -> WorkspaceRequestContext:
        caller = conn.scope.get(CALLER)
        if not isinstance(caller, Caller):
            raise PermissionError("a request that has not come through the gate is not answered")
        return RoleContext(self._process_context, caller=caller, source=conn)

    async def graphql_http_endpoint(self, request: Request) -> Response:
        """Answer GraphQL.

        The gate has looked at the address and the content type already, but routers and parsers differ: what matters
        is that a request which reaches Dagster's parser is a POST whose body is what is executed.
        """
        if request.method == "POST" and "application/json" in request.headers.get("Content-Type", ""):
            answer: Response = await super().graphql_http_endpoint(request)
            return answer
        if request.method == "GET" and not request.url.query and "text/html" in request.headers.get("Accept", ""):
            page: Response = await super().graphql_http_endpoint(request)
            return page
        return PlainTextResponse("Refused: GraphQL is answered by POST of application/json only.\n", 405)

    def index_html_endpoint(self, request: Request) -> Response:
        """Dagster's page, with a link to log out in its corner for whoever has logged in."""
        answer: Response = super().index_html_endpoint(request)
        caller = request.scope[CALLER]
        if caller.way not in (LoginWay.PASSWORD, LoginWay.OIDC):
            return answer
        text = bytes(answer.body).decode().replace("</body>", f"{log_out_link(caller)}</body>")
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return HTMLResponse(text, answer.status_code, headers)


@dataclass(frozen=True)
class ServedDagster:
    """Dagster's webserver as an ASGI application, and what is read of the Dagster behind it."""

    app: Starlette
    view: DagsterView


@contextmanager
def dagster_app(
    workspace: str, *, code_server_log_level: str, audit: AuditLog, routes: Sequence[BaseRoute] = ()
) -> Iterator[ServedDagster]:
    """Dagster's webserver, with the code servers that it needs.

    Args:
        workspace: path of the workspace.yaml.
        code_server_log_level: from which level on code servers log.
        audit: where each mutation is written.
        routes: what it answers besides; each looks at who asks by itself.
    """
    configure_loggers(log_level="INFO")
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_SECONDS, POOL_MAX_OVERFLOW)
        with WorkspaceProcessContext(
            instance,
            version=version,
            read_only=False,
            workspace_load_target=WorkspaceFileTarget([workspace]),
            code_server_log_level=code_server_log_level,
        ) as context:
            name_launches(instance.run_storage)
            app = Webserver(context, audit, routes=routes).create_asgi_app(lifespan=_lifespan)
            yield ServedDagster(app, DagsterView(context))


@asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncIterator[None]:
    """End without a traceback; as Dagster's command does it."""
    try:
        yield
    except asyncio.CancelledError:
        return
