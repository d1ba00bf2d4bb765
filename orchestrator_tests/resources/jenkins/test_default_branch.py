"""Where the HEAD of a remote points: asked without a login, bounded in time, and seldom."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.resources.jenkins import default_branch as module
from orchestrator.resources.jenkins.default_branch import default_branch
from orchestrator_sandbox.git import GitRemote
from orchestrator_tests.support.raw_http import raw_server


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    module._answers.clear()
    yield
    module._answers.clear()


def test_the_branch_that_head_names_is_told_and_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GitRemote(tmp_path / "remote") as remote:
        asked = []
        ask = module._ask

        def counted(address: str) -> str | None:
            asked.append(address)
            return ask(address)

        monkeypatch.setattr(module, "_ask", counted)
        assert default_branch(f"{remote.url}#sub/dir") == "main"
        assert default_branch(remote.url) == "main"
        assert asked == [remote.url]


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "#sub",
        "/srv/git/churn.git",
        "file:///srv/git/churn.git",
        "ext::sh -c id",
        "--upload-pack=id",
        "-oProxyCommand=id:x",
        "C:\\churn",
    ],
)
def test_what_is_no_address_of_a_server_is_not_asked(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("asked"))
    assert default_branch(remote) is None


def test_a_remote_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.3)
    with raw_server(b"HTTP/1.1 200 OK\r\n", then=b" ") as server:
        assert default_branch(server.url) is None


def test_no_password_stands_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **_: object) -> None:
        commands.append(command)
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert default_branch("https://ada:s3cret@git.example.com/churn.git") is None
    assert commands[0][-2:] == ["https://git.example.com/churn.git", "HEAD"]
