"""The sandbox's Jenkins really builds what is pushed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.jenkins.home import JobConfig
from orchestrator_sandbox.jenkins.server import JenkinsServer
from orchestrator_tests.support.jenkins_client import Client, built
from orchestrator_tests.support.waiting import until

TEST = "from answer import ANSWER\ndef test_it():\n    assert ANSWER == 42\n"
WAITS = """
import os, pathlib, signal
pathlib.Path("pid").write_text(str(os.getpid()))
signal.alarm(300)
signal.pause()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JenkinsServer]:
    with JenkinsServer(tmp_path / "jenkins") as server:
        yield server


@pytest.fixture
def client(server: JenkinsServer) -> Client:
    return Client(server)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[GitRemote]:
    source = tmp_path / "project"
    source.mkdir()
    (source / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (source / "answer.py").write_text("ANSWER = 42\n")
    (source / "test_it.py").write_text(TEST)
    with GitRemote(tmp_path / "git", source) as remote:
        yield remote


def test_a_push_is_built_and_a_broken_commit_fails_honestly(
    server: JenkinsServer, client: Client, remote: GitRemote
) -> None:
    remote.notify(server.notify_url(remote.url))
    server.create_job("project", JobConfig(repository=remote.url))
    first = built(server, "project", 1)
    assert (first.result, first.commit) == ("SUCCESS", remote.head())
    broken = remote.commit("Break it", {"answer.py": "ANSWER = 41\n"})
    second = built(server, "project", 2)
    assert (second.result, second.commit) == ("FAILURE", broken)
    console = client.get("job/project/2/consoleText").text
    assert "assert 41 == 42" in console
    assert f"Checking out Revision {broken}" in console
    assert console.endswith("Finished: FAILURE\n")
    assert client.json("job/project/2/")["result"] == "FAILURE"
    server.access.anonymous_read = True
    page = requests.get(f"{server.url}job/project/2/", timeout=10).text
    assert "FAILURE" in page
    assert broken in page
    assert "assert 41 == 42" in page
    assert "#2" in requests.get(server.url, timeout=10).text
    assert "#1" in requests.get(f"{server.url}job/project/", timeout=10).text


def test_failed_tests_are_unstable_when_the_job_says_so(server: JenkinsServer, remote: GitRemote) -> None:
    remote.commit("Break it", {"answer.py": "ANSWER = 41\n"})
    server.create_job("project", JobConfig(repository=remote.url, unstable=True))
    assert built(server, "project", 1).result == "UNSTABLE"


def test_every_branch_of_a_multibranch_project_is_built(server: JenkinsServer, remote: GitRemote) -> None:
    head = remote.commit("Try", {"new.txt": ""}, branch="feature/x")
    server.create_job("team/app", JobConfig(kind="multibranch", repository=remote.url))
    build = built(server, "team/app/feature%2Fx", 1)
    assert (build.result, build.commit, build.branch) == ("SUCCESS", head, "feature/x")
    main = built(server, "team/app/main", 1)
    assert main.commit == remote.head()
    assert [server.job_config(f"team/app/{name}").primary for name in ("main", "feature%2Fx")] == [True, False]
    requests.get(server.notify_url(remote.url), timeout=10)
    server.access.anonymous_read = True
    assert "feature%252Fx" in requests.get(f"{server.url}job/team/job/app/", timeout=10).text


def test_a_parameterised_build_is_queued_and_started(server: JenkinsServer, client: Client, remote: GitRemote) -> None:
    config = JobConfig(
        repository=remote.url,
        triggered=False,
        parameters={"WHO": "nobody"},
        command=("-c", "import os; print('hello', os.environ['WHO'], os.environ['BUILD_NUMBER'])"),
    )
    server.create_job("project", config)
    assert client.post("job/project/build").status_code == 400
    answer = client.post("job/project/buildWithParameters", WHO="$(me)", NOT_DECLARED="x")
    assert answer.status_code == 201
    path = answer.headers["Location"].removeprefix(server.url)
    item = until(lambda: has_executable(client.json(path)))
    assert item["_class"] == "hudson.model.Queue$LeftItem"
    assert item["executable"]["url"] == f"{server.url}job/project/1/"
    build = built(server, "project", 1)
    assert build.parameters == {"WHO": "$(me)"}
    assert build.cause == "Started by user orchestrator"
    assert "hello $(me) 1" in client.get("job/project/1/consoleText").text
    declared = client.json("job/project/", tree="property[parameterDefinitions[name]]")["property"]
    assert declared[0]["parameterDefinitions"][0]["name"] == "WHO"


def has_executable(item: Any) -> Any:
    return item if "executable" in item else None


def test_a_build_can_be_stopped_and_waiting_builds_are_one(
    server: JenkinsServer, client: Client, remote: GitRemote
) -> None:
    server.create_job("project", JobConfig(repository=remote.url, triggered=False, command=("-c", WAITS)))
    client.post("job/project/build")
    until(lambda: list(workspaces(server).glob("*/pid")))
    waiting = [client.post("job/project/build").headers["Location"] for _ in range(2)]
    assert waiting[0] == waiting[1]
    item = client.json(waiting[0].removeprefix(server.url))
    assert item["_class"] == "hudson.model.Queue$BuildableItem"
    assert client.json("job/project/", tree="inQueue")["inQueue"] is True
    assert client.json("job/project/1/")["result"] is None
    assert client.post("job/project/1/stop").status_code == 302
    assert built(server, "project", 1).result == "ABORTED"
    until(lambda: client.json("job/project/")["nextBuildNumber"] == 3)
    server.delete_job("project")
    assert server.idle()
    assert client.get("job/project/api/json").status_code == 404


def test_a_job_without_a_repository_or_with_a_wrong_one_fails(server: JenkinsServer, client: Client) -> None:
    server.create_job("nothing", JobConfig())
    server.create_job("wrong", JobConfig(repository="git://127.0.0.1:1/none.git"))
    for job in ("nothing", "wrong"):
        client.post(f"job/{job}/build")
        assert built(server, job, 1).result == "FAILURE"


def test_closing_leaves_no_thread_process_or_port(tmp_path: Path, remote: GitRemote) -> None:
    before = set(threading.enumerate())
    server = JenkinsServer(tmp_path / "j")
    server.create_job("project", JobConfig(repository=remote.url, command=("-c", WAITS)))
    until(lambda: list(workspaces(server).glob("*/pid")))
    server.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(requests.ConnectionError):
        requests.get(server.url, timeout=5)
    assert server.builds("project")[0].result == "ABORTED"
    assert not list(workspaces(server).iterdir())


def workspaces(server: JenkinsServer) -> Path:
    return server._home.directory / "workspaces"
