"""A look into one commit, with a real Git daemon."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.resources import git
from orchestrator.resources.git import commit as module
from orchestrator_sandbox.git import GitRemote
from orchestrator_sandbox.git import git as run_git


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitRemote]:
    directory = tmp_path_factory.mktemp("remote")
    source = directory / "project"
    (source / "models" / "churn").mkdir(parents=True)
    (source / "MLproject").write_text("name: churn\n")
    (source / "models" / "churn" / "train.py").write_text("print(1)\n")
    (source / "models" / "größe \n x").write_text("odd")
    with GitRemote(directory / "git", source) as served:
        served.commit("A link", lambda tree: (tree / "link").symlink_to("models"))
        yield served


def test_files_and_folders_of_a_commit_are_read_also_when_the_branch_has_moved_on(remote: GitRemote) -> None:
    first = remote.head()
    remote.commit("Change it", {"MLproject": "name: another\n"})
    with git.fetched(remote.url, first) as commit:
        assert commit
        assert commit.file("MLproject") == b"name: churn\n"
        assert git.Entry("churn", is_folder=True) in (commit.folder("models") or [])
        assert git.Entry("größe \n x") in (commit.folder("models/") or [])
        assert commit.folder("models/churn") == [git.Entry("train.py")]
        assert commit.folder("nothing/here") is None
        assert commit.folder("MLproject") is None


def test_a_branch_and_an_annotated_tag_are_versions_too(remote: GitRemote) -> None:
    run_git("tag", "--annotate", "--message=x", "v1", "main", cwd=remote.repository)
    for version in ("main", "v1", "refs/heads/main"):
        with git.fetched(remote.url, version) as commit:
            assert commit
            assert commit.folder("models/churn") == [git.Entry("train.py")]


def test_a_link_is_not_followed(remote: GitRemote) -> None:
    with git.fetched(remote.url, "main") as commit:
        assert commit
        assert git.Entry("link", leads_away=True) in (commit.folder() or [])
        with pytest.raises(git.GitFailed, match="link"):
            commit.folder("link/churn")


@pytest.mark.parametrize(
    "address",
    ["file:///etc", "/etc", "ext::sh -c touch% {proof}", "--upload-pack=touch {proof}", "-oProxyCommand=touch {proof}"],
)
def test_nothing_but_a_remote_is_fetched_and_nothing_is_run(tmp_path: Path, address: str) -> None:
    proof = tmp_path / "proof"
    with git.fetched(address.format(proof=proof), "main") as commit:
        assert commit is None
    assert not proof.exists()


def test_a_version_that_looks_like_an_option_is_none(remote: GitRemote, tmp_path: Path) -> None:
    for version in (f"--upload-pack=touch {tmp_path / 'proof'}", "main:refs/heads/x", "*", "0" * 40):
        with git.fetched(remote.url, version) as commit:
            assert commit is None
    assert not (tmp_path / "proof").exists()


def test_a_server_that_never_answers_costs_so_long_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        git.fetched(f"git://127.0.0.1:{silent.getsockname()[1]}/x.git", "main") as commit,
    ):
        assert commit is None


def test_a_repository_without_end_costs_so_much_at_most(
    remote: GitRemote, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LARGEST_PACK_KB", 64)
    large = remote.commit("A fat file", lambda tree: (tree / "data.bin").write_bytes(os.urandom(1_000_000)))
    caplog.set_level("INFO", logger="orchestrator")
    with git.fetched(remote.url, large) as commit:  # this daemon knows no filter, so all of it would come
        assert commit is None
    assert "is left to the instance" in caplog.text


def test_a_large_file_is_not_read(remote: GitRemote) -> None:
    version = remote.commit("A fat MLproject", {"MLproject": "#" * 1_000_001}, branch="fat")
    with git.fetched(remote.url, version) as commit:
        assert commit
        assert commit.file("MLproject") is None


def test_variables_of_another_repository_do_not_lead_astray(
    remote: GitRemote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    with git.fetched(remote.url, "main") as commit:
        assert commit
        assert commit.folder()
