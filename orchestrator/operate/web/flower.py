"""Celery's Flower behind our login: for admins, because it can stop workers and read all that Celery knows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Role
from orchestrator.operate.web.gate import CALLER
from orchestrator.operate.web.rules import READING

PREFIX = "/flower"
SECONDS = (5, 30)
LONGEST_BODY = 100_000
XSRF = "_xsrf"
"""The one cookie of Flower's; ours are none of its business."""

SENT = ("accept", "content-type", "x-requested-with", "x-xsrftoken")
ANSWERED = ("content-type", "cache-control", "etag", "last-modified", "location")

_log = logging.getLogger(__name__)


class FlowerProxy:
    """Hands the requests of admins to a Flower that was started with `--url-prefix=flower`.

    Args:
        url: where it is; its user and password, too, if it asks for them.
        audit: where each request that changes something is written.
    """

    def __init__(self, url: str, *, audit: AuditLog) -> None:
        parts = urlsplit(url)
        self._login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        self._address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
        self._audit = audit

    def routes(self) -> Sequence[Route]:
        """For Dagster's webserver, before its own: they end in one that takes every path."""
        return [Route(path, self._answer, methods=["GET", "POST"]) for path in (PREFIX, f"{PREFIX}/{{path:path}}")]

    async def _answer(self, request: Request) -> Response:
        caller = request.scope[CALLER]
        if caller.role is not Role.ADMIN:
            return PlainTextResponse("Refused: Flower is for admins.\n", 403)
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        if not path.startswith("/") or ".." in unquote(path).split("/"):  # "@elsewhere" would become a host's name
            return PlainTextResponse("Refused: the path leads out of Flower.\n", 400)
        if int(request.headers.get("content-length") or 0) > LONGEST_BODY:
            return PlainTextResponse("Refused: no request to Flower is that long.\n", 413)
        if request.method not in READING:
            self._audit.write(caller, "flower", of=path)
        return await run_in_threadpool(self._ask, request, path, await request.body())

    def _ask(self, request: Request, path: str, body: bytes) -> Response:
        headers = {name: request.headers[name] for name in SENT if name in request.headers}
        cookies = {XSRF: request.cookies[XSRF]} if XSRF in request.cookies else {}
        query = request.scope["query_string"].decode("latin-1")
        try:
            with requests.Session() as session:
                session.trust_env = False
                found = session.request(
                    request.method,
                    f"{self._address}{path}{'?' if query else ''}{query}",
                    headers=headers,
                    cookies=cookies,
                    data=body,
                    auth=self._login,
                    timeout=SECONDS,
                    allow_redirects=False,
                )
        except requests.RequestException as error:
            _log.warning("Flower does not answer: %s", type(error).__name__)
            return PlainTextResponse(f"Flower does not answer on {self._address} (FLOWER_URL).\n", 502)
        answer = Response(found.content, found.status_code)
        for name in ANSWERED:
            if name in found.headers:
                answer.headers[name] = found.headers[name]
        if XSRF in found.cookies:
            answer.set_cookie(XSRF, str(found.cookies[XSRF]), path=PREFIX, samesite="strict")
        return answer
