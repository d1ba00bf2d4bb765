"""A real Flower behind the login: admins reach it, nobody else does, and it gets nothing of our logins."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.types import Message

from orchestrator.operate.web.audit import AuditLog
from orchestrator.operate.web.caller import Caller, LoginWay, Role
from orchestrator.operate.web.flower import FlowerProxy
from orchestrator.operate.web.gate import CALLER
from orchestrator_sandbox.processes.child import ChildProcess, free_port
from orchestrator_tests.support.celery_workers import PASSWORD, RedisServer
from orchestrator_tests.support.dockerfile import PROJECT
from orchestrator_tests.support.echo_server import echo_server

services = pytest.mark.services


def asked(
    proxy: FlowerProxy,
    path: str,
    *headers: tuple[str, str],
    role: Role = Role.ADMIN,
    method: str = "GET",
    raw: str | None = None,
) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers of the answer to a request that the gate has let through."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    before, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": before,
        "raw_path": (before if raw is None else raw).encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        CALLER: Caller(name="ada", role=role, way=LoginWay.PASSWORD),
    }
    asyncio.run(Starlette(routes=proxy.routes())(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages).decode(), found


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("flower")
    port = free_port()
    words = ("--app", "orchestrator.launchers.app", "flower", "--url-prefix=flower", "--address=127.0.0.1")
    with RedisServer(directory / "redis") as redis:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": str(PROJECT),
            "CELERY_BROKER_URL": redis.url,
            "FLOWER_BASIC_AUTH": "us:streng geheim",
        }
        argv = [sys.executable, "-m", "celery", *words, f"--port={port}"]
        with ChildProcess(argv, name="Flower", log=directory / "flower.log", env=environment, cwd=directory) as child:
            child.await_http(f"http://127.0.0.1:{port}/flower/healthcheck", seconds=120)
            assert PASSWORD not in child.log.read_text()
            yield f"http://us:streng%20geheim@127.0.0.1:{port}"


@services
def test_an_admin_sees_flowers_pages_and_may_act(flower: str, tmp_path: Path) -> None:
    proxy = FlowerProxy(flower, audit=AuditLog(tmp_path))
    for page in ("/flower/", "/flower/workers", "/flower/tasks", "/flower/broker", "/flower/static/css/flower.css"):
        status, body, headers = asked(proxy, page)
        assert (status, bool(body)) == (200, True), page
        assert "server" not in headers
    status, body, _ = asked(proxy, "/flower/api/tasks?limit=1")
    assert (status, body) == (200, "{}")
    assert asked(proxy, "/flower/api/task/revoke/no-such-task", method="POST")[0] == 200
    (line,) = AuditLog(tmp_path).file.read_text().splitlines()
    assert "/flower/api/task/revoke/no-such-task" in line


@services
def test_without_flowers_password_it_says_no(flower: str, tmp_path: Path) -> None:
    proxy = FlowerProxy(flower.replace("us:streng%20geheim@", ""), audit=AuditLog(tmp_path))
    assert asked(proxy, "/flower/")[0] == 401


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_nobody_else_does(role: Role, tmp_path: Path) -> None:
    with echo_server() as url:
        proxy = FlowerProxy(url, audit=AuditLog(tmp_path))
        for path, method in (("/flower", "GET"), ("/flower/tasks", "GET"), ("/flower/api/task/revoke/x", "POST")):
            assert asked(proxy, path, role=role, method=method)[:2] == (403, "Refused: Flower is for admins.\n")


def test_a_flower_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    proxy = FlowerProxy(f"http://us:geheim@127.0.0.1:{free_port()}", audit=AuditLog(tmp_path))
    status, body, _ = asked(proxy, "/flower/")
    assert status == 502
    assert "Flower does not answer on http://127.0.0.1:" in body
    assert "geheim" not in body


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    proxy = FlowerProxy("http://127.0.0.1:1", audit=AuditLog(tmp_path))
    for path in ("/flower/../graphql", "/flower/%2e%2e/graphql"):
        assert asked(proxy, path)[0] == 400
    for raw in ("@127.0.0.1:2/flower/", "http://127.0.0.1:2/flower/", ":2/flower/", ""):
        assert asked(proxy, "/flower/", raw=raw)[0] == 400
