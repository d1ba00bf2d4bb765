"""The sandbox's Jenkins builds what it is told to: no web page tells it anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from orchestrator_sandbox.jenkins.home import JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_tests.support.jenkins_client import COMMIT

CHANGES = [
    "job/digits/build",
    "job/digits/doDelete",
    "job/digits/1/doDelete",
    "createItem?name=x&mode=copy&from=digits",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JenkinsServer]:
    with JenkinsServer(tmp_path / "jenkins", anonymous_read=True) as server:
        server.create_job("digits", JobConfig(triggered=False))
        server.add_build("digits", commit=COMMIT)
        yield server


def unchanged(server: JenkinsServer) -> bool:
    return [build.number for build in server.builds("digits")] == [1] and server.idle() and not server.builds("x")


def headers_of(answer: requests.Response) -> list[str]:
    return [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost:8080"])
@pytest.mark.parametrize("path", CHANGES)
def test_no_page_changes_anything_whatever_it_knows(server: JenkinsServer, origin: str, path: str) -> None:
    for login in (None, (server.access.user, server.access.token), (server.access.user, server.access.password)):
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
            answer = requests.post(
                f"{server.url}{path}", headers={"Origin": origin, "Content-Type": kind}, auth=login, timeout=30
            )
            assert answer.status_code == 403
            assert not headers_of(answer)
    assert unchanged(server)


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_nobody_changes_anything_without_a_login(server: JenkinsServer, path: str, method: str) -> None:
    """As another user of the computer asks, or a page by an image or a link, which send no Origin."""
    requests.request(method, f"{server.url}{path}", timeout=30)
    session = requests.Session()
    crumb = session.get(f"{server.url}crumbIssuer/api/json", timeout=30).json()["crumb"]
    session.request(method, f"{server.url}{path}", headers={"Jenkins-Crumb": crumb}, timeout=30)
    assert unchanged(server)


def test_a_push_is_announced_by_those_who_know_the_token_only(server: JenkinsServer) -> None:
    for token in ("", "x", server.access.password):
        url = f"{server.url}git/notifyCommit?url=x&token={token}"
        assert requests.get(url, timeout=30).status_code == 403
    assert requests.get(server.notify_url("x"), timeout=30).status_code == 200
    assert requests.get(server.notify_url("x"), headers={"Origin": "null"}, timeout=30).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "localhost:{port}", "127.0.0.1", ""])
def test_another_name_leads_nowhere(server: JenkinsServer, host: str) -> None:
    """A page whose name was made to lead here reads what it is sent, console logs too."""
    name = host.format(port=urlsplit(server.url).port)
    for path in ("", "job/digits/1/consoleText", "job/digits/api/json", "crumbIssuer/api/json"):
        answer = requests.get(f"{server.url}{path}", headers={"Host": name}, timeout=30)
        assert answer.status_code == 421
        assert COMMIT not in answer.text


def test_no_page_frames_it_or_reads_it(server: JenkinsServer) -> None:
    answer = requests.get(server.url, timeout=30)
    assert answer.headers["X-Frame-Options"] == "sameorigin"
    assert not headers_of(answer)
    read = requests.get(f"{server.url}api/json", headers={"Origin": "http://127.0.0.1:1"}, timeout=30)
    assert read.status_code == 403
