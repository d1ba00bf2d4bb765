"""The sandbox's Git remote behaves as one on another machine."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orchestrator.errors import SandboxError
from orchestrator_sandbox.git import GitRemote, git, git_environment
from orchestrator_sandbox.web import WebServer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "project"
    (source / "__pycache__").mkdir(parents=True)
    (source / "__pycache__" / "left.pyc").write_text("")
    (source / "answer.py").write_text("ANSWER = 42\n")
    return source


@pytest.fixture
def remote(tmp_path: Path, source: Path) -> Iterator[GitRemote]:
    with GitRemote(tmp_path / "git", source) as remote:
        yield remote


def test_it_is_cloned_over_a_protocol(remote: GitRemote, tmp_path: Path) -> None:
    assert remote.url.startswith("git://127.0.0.1:")
    git("clone", "--quiet", remote.url, "clone", cwd=tmp_path)
    assert (tmp_path / "clone" / "answer.py").read_text() == "ANSWER = 42\n"
    assert not (tmp_path / "clone" / "__pycache__").exists()
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == remote.head()


def test_an_old_commit_can_be_fetched_by_itself(remote: GitRemote, tmp_path: Path) -> None:
    first = remote.head()
    remote.commit("Second", {"answer.py": "ANSWER = 43\n"})
    git("clone", "--quiet", remote.url, "clone", cwd=tmp_path)
    git("checkout", "--quiet", first, cwd=tmp_path / "clone")
    assert (tmp_path / "clone" / "answer.py").read_text() == "ANSWER = 42\n"


def test_commits_build_on_each_other(remote: GitRemote) -> None:
    first = remote.commit("Add a file", {"sub/more.txt": "more"})
    second = remote.commit("Remove one", lambda tree: (tree / "answer.py").unlink())
    assert remote.head() == second
    assert git("rev-parse", f"{second}~1", cwd=remote.repository) == first
    assert git("ls-tree", "-r", "--name-only", "main", cwd=remote.repository) == "sub/more.txt"
    assert git("log", "-1", "--format=%an <%ae>", cwd=remote.repository) == "Ada Example <ada@example.com>"


def test_a_new_branch_starts_from_main(remote: GitRemote) -> None:
    start = remote.head()
    head = remote.commit("Try it", {"answer.py": "ANSWER = 1\n"}, branch="feature/x")
    assert remote.head("feature/x") == head
    assert remote.head() == start
    assert remote.branches() == ["feature/x", "main"]
    assert git("rev-parse", f"{head}~1", cwd=remote.repository) == start


def test_a_users_push_arrives_and_is_announced(remote: GitRemote, tmp_path: Path) -> None:
    asked: list[str] = []

    def application(environ: dict[str, str], start_response: object) -> list[bytes]:
        asked.append(f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        assert callable(start_response)
        start_response("200 OK", [])
        return [b""]

    server = WebServer(application)
    remote.notify(f"http://127.0.0.1:{server.port}/git/notifyCommit?url=x&token=y")
    git("clone", "--quiet", remote.push_url, "clone", cwd=tmp_path)
    git("commit", "--quiet", "--allow-empty", "-m", "Mine", cwd=tmp_path / "clone")
    git("push", "--quiet", "origin", "main", cwd=tmp_path / "clone")
    server.close()
    assert git("rev-parse", "HEAD", cwd=tmp_path / "clone") == remote.head()
    assert asked == ["/git/notifyCommit?url=x&token=y"]
    remote.commit("Pushed while nobody listens", {})


@pytest.mark.parametrize("allowed", ["", "daemon.receivepack", "http.receivepack"])
def test_nobody_pushes_over_the_network(remote: GitRemote, tmp_path: Path, allowed: str) -> None:
    """Jenkins runs what is pushed, and any user of the computer, and any page in its browsers, reaches the port."""
    if allowed:
        git("config", allowed, "true", cwd=remote.repository)
    head = remote.head()
    git("clone", "--quiet", remote.url, "clone", cwd=tmp_path)
    git("commit", "--quiet", "--allow-empty", "-m", "Not mine to push", cwd=tmp_path / "clone")
    for reference in ("main", "main:refs/heads/other", "main:refs/tags/v1", ":main"):
        with pytest.raises(SandboxError, match=r"service not enabled: /project\.git"):
            git("push", "--force", "origin", reference, cwd=tmp_path / "clone")
    assert remote.head() == head
    assert remote.branches() == ["main"]


def test_another_user_of_the_computer_can_read_but_not_push(source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, GitRemote(Path(folder) / "git", source) as remote:
        Path(folder).chmod(0o755)
        assert stat.S_IMODE(remote.directory.stat().st_mode) == 0o700
        if os.geteuid() == 0:  # else nobody here can become another user
            assert git_as_nobody("ls-remote", remote.url) == 0
            assert git_as_nobody("ls-remote", remote.push_url) != 0


def git_as_nobody(*words: str) -> int:
    return subprocess.run(
        ["git", "-c", "safe.directory=*", *words],
        cwd="/",
        env=git_environment() | {"HOME": "/"},
        user=65534,
        group=65534,
        extra_groups=[],
        timeout=60,
        check=False,
    ).returncode


def test_a_folder_that_was_open_is_closed(tmp_path: Path, source: Path) -> None:
    (tmp_path / "git").mkdir(mode=0o755)
    with GitRemote(tmp_path / "git", source) as remote:
        assert stat.S_IMODE(remote.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "request_line",
    [
        "POST /project.git/git-receive-pack HTTP/1.1",
        "GET /project.git/info/refs?service=git-receive-pack HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "0038git-receive-pack /project.git\0host=127.0.0.1\0",
    ],
)
def test_a_browser_gets_nothing_from_its_port(remote: GitRemote, request_line: str) -> None:
    port = urlsplit(remote.url).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=30) as raw:
        body = "0032git-receive-pack /project.git\0host=127.0.0.1\0"
        raw.sendall(f"{request_line}\r\nHost: evil.example\r\nOrigin: https://evil.example\r\n\r\n{body}".encode())
        with contextlib.suppress(OSError):  # it may have hung up already
            raw.shutdown(socket.SHUT_WR)
        try:
            answer = raw.makefile("rb").read()
        except ConnectionResetError:
            answer = b""
    assert remote.head().encode() not in answer


def test_it_is_taken_up_again_with_its_history_and_address(remote: GitRemote, tmp_path: Path, source: Path) -> None:
    head = remote.commit("Before", {"new": "1"})
    remote.close()
    with GitRemote(tmp_path / "git", source) as again:
        assert again.url == remote.url
        assert again.head() == head
        assert git("ls-remote", again.url, "main", cwd=tmp_path).startswith(head)


def test_a_branch_that_is_not_there_is_an_error(remote: GitRemote) -> None:
    with pytest.raises(SandboxError, match="refs/heads/none"):
        remote.head("none")


def test_a_git_without_its_daemon_is_explained(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_EXEC_PATH", os.fspath(tmp_path))
    with pytest.raises(SandboxError, match="git-daemon"):
        GitRemote(tmp_path / "git", source)


def test_a_machine_without_git_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(SandboxError, match="install the package git"):
        git("version", cwd=tmp_path)
