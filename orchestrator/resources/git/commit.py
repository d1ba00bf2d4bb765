"""One commit of a remote, without its files: fetched for a moment, bounded in time and size, and read by Git itself.

Nothing of it is run: no hook, no submodule, no work tree, no question to a terminal.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

SECONDS = 30.0
"""For the whole look; a repository that needs longer is not looked into."""

_REF = "refs/orchestrator/commit"

LARGEST_PACK_KB = 65536
LARGEST_FILE_BYTES = 1_000_000

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "credential.interactive": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "http.followRedirects": "false",
    "protocol.version": "2",
}

_ENVIRONMENT = {
    "GCM_INTERACTIVE": "never",
    "GIT_ALLOW_PROTOCOL": "http:https:ssh:git",
    "GIT_ASKPASS": "/bin/false",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    "SSH_ASKPASS": "/bin/false",
}

_REPOSITORY_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""They would make Git work on another repository than ours."""


class GitFailed(Exception):
    """Git did not do it, or not in time; its last line says why."""


@dataclass(frozen=True)
class Entry:
    """One name in a folder of a commit.

    Attributes:
        name: of the file or folder, without the way to it.
        is_folder: whether it is one.
        leads_away: whether it is a link, or a submodule, which this look does not follow.
    """

    name: str
    is_folder: bool = False
    leads_away: bool = False

    @classmethod
    def parse(cls, line: str) -> Entry:
        """Read a line of `git ls-tree`: `MODE TYPE SHA<tab>NAME`."""
        about, _, name = line.partition("\t")
        mode, kind, _ = about.split()
        return cls(name, is_folder=kind == "tree", leads_away=mode in ("120000", "160000"))


class RemoteCommit:
    """A commit that was fetched.

    Args:
        repository: where Git has it.
        deadline: on the monotonic clock, in seconds.
    """

    def __init__(self, repository: Path, *, deadline: float) -> None:
        self._repository = repository
        self._deadline = deadline

    def folder(self, path: str = "") -> Sequence[Entry] | None:
        """What a folder holds; None when there is no folder of that name.

        Args:
            path: from the root on, as in `a/b`; empty: the root.

        Raises:
            GitFailed: Git could not tell.
        """
        path = path.strip("/")
        if path:
            parent, _, name = path.rpartition("/")
            entry = next((entry for entry in self.folder(parent) or () if entry.name == name), None)
            if entry and entry.leads_away:
                raise GitFailed(f"{path} is a link or a submodule")
            if not entry or not entry.is_folder:
                return None
        listed = self._git("ls-tree", "-z", f"{_REF}:{path}").decode(errors="replace").split("\0")
        return [Entry.parse(line) for line in listed if line]

    def file(self, path: str) -> bytes | None:
        """What a file holds; None when it is larger than 1 MB.

        Args:
            path: from the root on, of a file that is there.

        Raises:
            GitFailed: Git could not tell.
        """
        content = self._git("cat-file", "blob", f"{_REF}:{path.strip('/')}")
        return content if len(content) <= LARGEST_FILE_BYTES else None

    def _git(self, *words: str) -> bytes:
        return _git(self._repository, *words, deadline=self._deadline)


@contextmanager
def fetched(remote: str, version: str) -> Iterator[RemoteCommit | None]:
    """Fetch one commit, its folders' names at least, into a folder that is deleted again.

    Args:
        remote: of http, https, ssh or git, or like `git@host:path`.
        version: the commit's SHA, a tag or a branch.

    Yields:
        The commit; None when this machine cannot fetch it, which says nothing about whether others can.
    """
    deadline = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(prefix="orchestrator-git-", ignore_cleanup_errors=True) as folder:
        repository = Path(folder)
        try:
            _git(repository, "init", "--quiet", "--bare", ".", deadline=deadline)
            _git(repository, "remote", "add", "--", "origin", remote, deadline=deadline)
            words = ("fetch", "--quiet", "--depth=1", "--filter=blob:none", "--no-tags", "--", "origin")
            _git(repository, *words, f"+{version}:{_REF}", deadline=deadline)
        except GitFailed as error:
            _log.info(f"Looking into {version} of {remote} is left to the instance, for it failed here: {error}")
            yield None
            return
        yield RemoteCommit(repository, deadline=deadline)


def _git(repository: Path, *words: str, deadline: float) -> bytes:
    program = shutil.which("git")
    if not program:
        raise GitFailed("there is no git here")
    config = [word for name, value in _CONFIG.items() for word in ("-c", f"{name}={value}")]
    # The limit is the shell's to set: `preexec_fn` is not safe in a process with threads.
    shell = ["sh", "-c", f'ulimit -f {LARGEST_PACK_KB * 2} && exec "$@"', "sh"]
    process = subprocess.Popen(
        [*shell, program, *config, *words],
        cwd=repository,
        env=_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with what Git has started: ssh, git-remote-https
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise GitFailed(f"it took longer than {SECONDS:g} s") from None
        raise
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise GitFailed(lines[-1][:300] if lines else f"git {words[0]} ended with {process.returncode}")
    return output


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The same as ours, so that its credential helpers and proxies count, but never a question."""
    kept = {name: value for name, value in ours.items() if name not in _REPOSITORY_VARIABLES}
    ssh = ours.get("GIT_SSH_COMMAND") or "ssh"
    return {**kept, **_ENVIRONMENT, "GIT_SSH_COMMAND": f"{ssh} -o BatchMode=yes -o ConnectTimeout=10"}
