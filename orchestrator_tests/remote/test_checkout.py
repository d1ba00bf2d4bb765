"""The project is fetched from Git servers of every kind; what cannot be fetched is told in one sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.remote import RemoteTraining
from orchestrator_sandbox.git import GitRemote, git
from orchestrator_sandbox.mlflow import MlflowServer
from orchestrator_tests.support.follower import Follower, of_training, programs_of
from orchestrator_tests.support.git_servers import answering, dumb_http, old_ssh, served
from orchestrator_tests.support.hooked import hook, mlflow_run, mlproject
from orchestrator_tests.support.mlflow_client import client
from orchestrator_tests.support.ssh_server import SshHost
from orchestrator_tests.support.waiting import until

MISSING = "1f2e3d4c5b6a79880123456789abcdef01234567"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[GitRemote]:
    """A project in a folder of its repository, with a commit that is no tip any more."""
    source = tmp_path / "source" / "models" / "churn"
    source.mkdir(parents=True)
    mlproject(source, "print('trained', open('../../data.csv').read(), os.getcwd())")
    (tmp_path / "source" / "data.csv").write_text("first")
    with GitRemote(tmp_path / "git", tmp_path / "source") as remote:
        yield remote


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkout").mkdir()
    return tmp_path / "checkout"


def move_on(remote: GitRemote) -> str:
    """The commit that is no tip any more."""
    first = remote.head()
    remote.commit("Change the data", {"data.csv": "second"})
    return first


def fetch(uri: str, version: str, folder: Path) -> str:
    fault: str = hook("checkout").fetch(uri, version, str(folder))
    return fault


@pytest.mark.services
def test_a_server_that_hands_out_branch_tips_only_trains_an_older_commit(
    mlflow_server: MlflowServer, remote: GitRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", old_ssh(tmp_path))
    first, uri = move_on(remote), f"ssh://git@server{remote.push_url}#models/churn"
    status, output, held = mlflow_run(mlflow_server, uri, home=tmp_path, arguments=["--version", first])
    assert (status, held) == (0, "FINISHED"), output
    assert f"orchestrator: fetching {first} of ssh://git@server" in output
    assert "unadvertised object" in output
    assert "trained first" in output
    assert "/models/churn\n" in output


@pytest.mark.parametrize("version", ["", "main", "v1"])
def test_a_web_server_that_knows_nothing_of_git_hands_out_commits_branches_and_tags(
    remote: GitRemote, folder: Path, version: str
) -> None:
    git("tag", "v1", cwd=remote.repository)
    first = move_on(remote)
    with dumb_http(remote.repository) as url:
        assert fetch(url, version or first, folder) == ""
    assert (folder / "data.csv").read_text() == ("second" if version == "main" else "first")


@pytest.mark.parametrize("kind", ["daemon", "ssh", "dumb"])
def test_a_commit_that_is_not_there_is_named_with_its_repository(
    remote: GitRemote, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", old_ssh(tmp_path))
    with dumb_http(remote.repository) as dumb:
        uri = {"daemon": remote.url, "ssh": f"ssh://git@server{remote.push_url}", "dumb": dumb}[kind]
        fault = fetch(uri, MISSING, folder)
    assert fault.startswith(f"there is no {MISSING} in {uri}, in none of its branches and tags (")


def test_a_branch_that_is_not_there_is_named(remote: GitRemote, folder: Path) -> None:
    fault = fetch(remote.url, "no-such-branch", folder)
    assert fault.startswith(f"Git cannot fetch no-such-branch of {remote.url}: ")
    assert "couldn't find remote ref no-such-branch" in fault


def test_a_repository_that_asks_for_a_login_is_no_question_to_anybody(folder: Path) -> None:
    handler = answering(status=401)
    with served(handler) as url:
        fault = fetch(f"{url}/team/churn.git", MISSING, folder)
    assert "could not read Username" in fault
    assert len(handler.asked) <= 2, "it is not tried again"


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (503, 3)])
def test_what_the_network_broke_is_tried_again_and_what_is_not_there_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, status: int, tries: int
) -> None:
    checkout, handler = hook("checkout"), answering(status=status)
    monkeypatch.setattr(checkout, "PAUSES", (0, 0))
    with served(handler) as url:
        fault = checkout.fetch(f"{url}/churn.git", MISSING, str(folder))
    assert "Git cannot fetch" in fault
    assert len(handler.asked) == tries


def test_a_server_that_comes_back_is_fetched_from(
    remote: GitRemote, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = hook("checkout")
    monkeypatch.setattr(checkout, "PAUSES", (0, 0))
    with dumb_http(remote.repository) as url:
        handler = answering(status=502, times=2, then=url.rpartition("/")[0])
        with served(handler) as flaky:
            assert checkout.fetch(f"{flaky}/{remote.repository.name}", remote.head(), str(folder)) == ""


def with_submodule(remote: GitRemote, directory: Path) -> str:
    """A commit with a submodule that the same server has; its SHA."""
    library = remote.repository.parent / "library.git"
    git("clone", "--quiet", "--bare", remote.push_url, str(library), cwd=directory)
    commit = git("rev-parse", "HEAD", cwd=library)

    def add(tree: Path) -> None:
        (tree / ".gitmodules").write_text('[submodule "library"]\n\tpath = library\n\turl = ../library.git\n')
        git("update-index", "--add", "--cacheinfo", f"160000,{commit},library", cwd=tree)
        (tree / "library").mkdir()
        git("clone", "--quiet", str(library), str(tree / "library"), cwd=tree)

    return remote.commit("Use the library", add)


def test_submodules_are_fetched_and_no_hook_of_git_is_run(
    remote: GitRemote, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = with_submodule(remote, tmp_path)
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    (template / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-was-run\n")
    (template / "post-checkout").chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template.parent))
    assert fetch(remote.url, commit, folder) == ""
    assert (folder / "library" / "data.csv").read_text() == "first"
    assert not (tmp_path / "hook-was-run").exists()


def test_a_submodule_that_cannot_be_fetched_is_a_failure(remote: GitRemote, folder: Path, tmp_path: Path) -> None:
    commit = with_submodule(remote, tmp_path)
    (remote.repository.parent / "library.git").rename(tmp_path / "away.git")
    fault = fetch(remote.url, commit, folder)
    assert fault.startswith(f"Git cannot fetch the submodules of {remote.url}: ")


def test_without_git_it_is_git_that_is_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert fetch("git://127.0.0.1:9/p.git", MISSING, folder).startswith("git: not found on the training's PATH")


@pytest.mark.services
def test_a_fetch_that_hangs_ends_with_its_training(host: SshHost, follower: Follower) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"git://127.0.0.1:{silent.getsockname()[1]}/churn.git"
        mlflow = str(Path(sys.executable).with_name("mlflow"))
        follower.start(mlflow, "run", "--version", MISSING, "--", uri, seconds=300, MLFLOW_TRACKING_URI="file:///none")
        following = follower.following()
        until(lambda: "git" in programs_of(follower))
        with Follower(host, run_id=follower.run_id).ssh as ssh:
            RemoteTraining(ssh, follower.run_id).stop(grace_seconds=1)
        ended = following.result()
    assert ended.kind == "stopped"
    assert f"orchestrator: fetching {MISSING} of {uri}" in follower.text
    assert not of_training(follower)


SOURCE = (
    "source.git.commit",
    "source.name",
    "source.git.repoURL",
    "source.type",
    "project.version",
    "source.git.branch",
)


@pytest.mark.services
def test_mlflow_says_the_same_of_the_source_as_without_us(
    mlflow_server: MlflowServer, remote: GitRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = "import mlflow\nmlflow.run('.', 'step', env_manager='local')\n"
    main = "entry_points:\n  main: {command: python main.py}\n  step: {command: 'true'}\n"
    files = {"models/churn/main.py": step, "models/churn/MLproject": f"name: p\n{main}"}
    commit, uri = remote.commit("Add a step", files), f"{remote.url}#models/churn"
    found = []
    for arguments in (["--version", commit], ["--version", "main"]):
        (tmp_path / arguments[1]).mkdir()
        status, output, _ = mlflow_run(mlflow_server, uri, home=tmp_path / arguments[1], arguments=arguments)
        assert status == 0, output
        found.append(newest_step(mlflow_server))
        environment = {**os.environ, **mlflow_server.env(), "MLFLOW_EXPERIMENT_ID": "0"}
        program = Path(sys.executable).with_name("mlflow")
        plain = [str(program), "run", uri, "--env-manager", "local", *arguments]
        environment["PATH"] = f"{program.parent}:{environment['PATH']}"
        done = subprocess.run(plain, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(newest_step(mlflow_server))
    hooked, without, hooked_branch, without_branch = found
    assert hooked["source.git.commit"] == commit
    assert hooked["source.git.repoURL"] == remote.url
    assert hooked == without
    assert hooked_branch == without_branch


def newest_step(server: MlflowServer) -> dict[str, str]:
    run = client(server.url).find_run("0", tags={"mlflow.project.entryPoint": "step"})
    assert run is not None
    tags = {name: run.tags.get(f"mlflow.{name}", "") for name in (*SOURCE, "project.version")}
    # MLflow names a temporary folder where it was handed one.
    return {**tags, "source.name": tags["source.name"].partition("/tmp")[0].partition("#")[0]}
