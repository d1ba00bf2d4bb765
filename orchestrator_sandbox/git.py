"""A Git remote on loopback: a bare repository of the sample project, served by `git daemon` to whoever wants to read.

Jenkins runs what is pushed, so pushing needs a right: the one that the file system gives to the owner of a folder.
No password has to be kept, typed, or hidden from the list of processes.

Reading needs a protocol, because `mlflow run file:///… -v SHA` does not clone: it fetches inside the source folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.errors import SandboxError
from orchestrator_sandbox.folders import private_folder
from orchestrator_sandbox.processes.child import ChildProcess, kept_port

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
AUTHOR = {
    "GIT_AUTHOR_NAME": "Ada Example",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada Example",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}
GIT_SECONDS = 60
NOT_COMMITTED = shutil.ignore_patterns("__pycache__", ".*_cache", "mlruns", "mlflow.db")
HOOK = """#!/bin/sh
# Tells Jenkins of every push; a Jenkins that is away finds the commit when it starts.
exec "{python}" - <<'END'
import contextlib, urllib.request
with contextlib.suppress(OSError):
    urllib.request.urlopen("{url}", timeout=5).close()
END
"""


def git_environment() -> dict[str, str]:
    """The environment for Git without the user's own configuration, and with a fixed author."""
    return os.environ | AUTHOR | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(*arguments: str, cwd: Path) -> str:
    """Run one Git command and return its standard output.

    Raises:
        SandboxError: it failed, or there is no Git.
    """
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=git_environment(),
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise SandboxError("the sandbox needs Git: install the package git") from error
    if process.returncode != 0:
        raise SandboxError(f"git {' '.join(arguments)} failed in {cwd}: {process.stderr.strip()}")
    return process.stdout.strip()


class GitRemote:
    """A repository that anybody clones from `url`, and its owner pushes to at `push_url`.

    Args:
        directory: where it is kept; one that was used before keeps its history, and its port if it is free.
        source: the folder that the first commit is made of.
        port: TCP port on loopback; 0: any free one.

    Attributes:
        url: where the repository is read.
        push_url: where it is read and written, by the user who runs the sandbox.

    Raises:
        SandboxError: Git or its daemon is not installed, or did not start.
    """

    def __init__(self, directory: Path, source: Path = EXAMPLE, *, port: int = 0) -> None:
        self.directory = private_folder(directory)
        daemon = Path(git("--exec-path", cwd=directory)) / "git-daemon"
        if not daemon.exists():
            raise SandboxError(
                f"the sandbox needs `git daemon`, which this Git lacks ({daemon}): some distributions package "
                "it separately, as git-daemon"
            )
        served = directory / "served"
        self.repository = served / f"{source.name}.git"
        self.push_url = str(self.repository.absolute())
        self._clone = directory / "clone"
        self._lock = threading.Lock()
        if not self.repository.exists():
            git("init", "--quiet", "--bare", "--initial-branch=main", str(self.repository), cwd=directory)
        if not self._clone.exists():
            git("clone", "--quiet", str(self.repository), str(self._clone), cwd=directory)
        if not self.branches():
            self.commit("Add the project", lambda tree: _copy(source, tree))
        port = port or kept_port(directory / "port")
        self.url = f"git://127.0.0.1:{port}/{self.repository.name}"
        self._daemon = ChildProcess(
            [
                str(daemon),
                f"--base-path={served}",
                "--export-all",
                "--informative-errors",
                "--disable=receive-pack",
                "--forbid-override=receive-pack",
                "--reuseaddr",
                "--listen=127.0.0.1",
                f"--port={port}",
                str(served),
            ],
            name="the Git daemon",
            log=directory / "git-daemon.log",
            env=git_environment(),
        )
        try:
            self._daemon.await_port(port)
        except SandboxError:
            self._daemon.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving it; what was pushed stays."""
        self._daemon.close()

    def commit(
        self, message: str, changes: Mapping[str, str] | Callable[[Path], object], *, branch: str = "main"
    ) -> str:
        """Commit on top of a branch and push it, as a user would.

        Args:
            message: the commit message.
            changes: path → text of files to write, or a function that edits the checkout it is handed.
            branch: the branch; a new one starts from main.

        Returns:
            The commit's SHA-1.
        """
        with self._lock:
            git("fetch", "--quiet", "--prune", "origin", cwd=self._clone)
            known = self.branches()
            if known:
                start = branch if branch in known else "main"
                git("checkout", "--quiet", "--force", "-B", branch, f"origin/{start}", cwd=self._clone)
                git("clean", "--quiet", "-dxff", cwd=self._clone)
            if callable(changes):
                changes(self._clone)
            else:
                for path, text in changes.items():
                    file = self._clone / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text)
            git("add", "--all", cwd=self._clone)
            git("commit", "--quiet", "--allow-empty", "--message", message, cwd=self._clone)
            git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", cwd=self._clone)
            return git("rev-parse", "HEAD", cwd=self._clone)

    def head(self, branch: str = "main") -> str:
        """The newest commit of a branch.

        Raises:
            SandboxError: there is no such branch.
        """
        return git("rev-parse", f"refs/heads/{branch}", cwd=self.repository)

    def branches(self) -> list[str]:
        """The names of all branches."""
        return git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", cwd=self.repository).split()

    def notify(self, url: str) -> None:
        """Ask for `url` after every push, such as Jenkins' `/git/notifyCommit?…`."""
        hook = self.repository / "hooks" / "post-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.touch(mode=0o700)  # the address may hold a token
        hook.write_text(HOOK.format(python=sys.executable, url=url))
        hook.chmod(0o700)


def _copy(source: Path, tree: Path) -> None:
    shutil.copytree(source, tree, dirs_exist_ok=True, ignore=NOT_COMMITTED)
