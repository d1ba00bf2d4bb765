"""Fetches a project for `mlflow run`: from servers that hand out no single commit, too, and with its large files.

Loaded by `sitecustomize.py`, into the same process. Each fault is one sentence; an empty one says that there is none.
Needs Python 3.8.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

PAUSES = (2, 5, 10)
"""Seconds before each further try of what the network broke."""

_CONFIG = (
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "http.lowSpeedLimit=1",  # bytes a second: a connection that is dead
    "http.lowSpeedTime=120",
)

_ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "LC_ALL": "C"}

_NOT_BY_ITSELF = re.compile(r"not our ref|unadvertised object|shallow", re.IGNORECASE)
"""What servers say that do not hand out a commit that is no tip, or no part of the history. Where Git speaks its
older protocol, as over SSH without `AcceptEnv GIT_PROTOCOL`, this is every server's default."""

_NETWORK = re.compile(
    r"could not resolve host|temporary failure in name resolution|connection (?:refused|reset|timed out|closed)"
    r"|timed out|network is unreachable|no route to host|too slow|early eof|rpc failed|hung up unexpectedly"
    r"|unexpected disconnect|broken pipe|returned error: (?:429|5\d\d)|gnutls|ssl_error_syscall|failed to connect"
    r"|unable to connect|couldn't connect",
    re.IGNORECASE,
)
_FINAL = re.compile(
    r"not our ref|unadvertised object|shallow|not found|denied|certificate|host key verification", re.IGNORECASE
)

_HINT = re.compile(r"^\s*$|^please make sure|^and the repository exists|^hint: |^warning: ", re.IGNORECASE)


def fetch(uri: str, version: str, folder: str) -> str:
    """Check a commit, branch or tag out into an empty folder, with its submodules; what MLflow's own fetch does.

    Args:
        uri: the repository.
        version: full SHA, or name.
        folder: where.
    """
    _say(f"fetching {version} of {uri}")
    try:
        for words in (("init", "--quiet", "--template="), ("remote", "add", "--", "origin", uri)):
            if fault := _try(folder, *words):
                return f"Git cannot prepare the folder of the project: {fault}"
        fault = _patiently(folder, "fetch", "--quiet", "--depth=1", "--tags", "--", "origin", version)
        if fault and _NOT_BY_ITSELF.search(fault):
            _say(f"{uri} does not hand out {version} by itself ({fault}): fetching all of its branches and tags")
            whole = _patiently(folder, "fetch", "--quiet", "--tags", "--", "origin")
            if whole:
                return f"Git cannot fetch {uri}: {whole}"
            if _git(folder, "rev-parse", "--verify", "--quiet", f"{version}^{{commit}}").returncode == 0 or (
                _git(folder, "rev-parse", "--verify", "--quiet", f"refs/remotes/origin/{version}").returncode == 0
            ):
                fault = ""
            else:
                return f"there is no {version} in {uri}, in none of its branches and tags ({fault})"
        if fault:
            return f"Git cannot fetch {version} of {uri}: {fault}"
        if fault := _try(folder, "checkout", "--quiet", version):
            return f"Git cannot check {version} of {uri} out: {fault}"
        if fault := _patiently(folder, "submodule", "--quiet", "update", "--init", "--recursive"):
            return f"Git cannot fetch the submodules of {uri}: {fault}"
    except FileNotFoundError:
        return f"git: not found on the training's PATH ({os.environ.get('PATH')})"
    return ""


def _patiently(folder: str, *words: str) -> str:
    for pause in PAUSES:
        fault = _try(folder, *words)
        if not fault or _FINAL.search(fault) or not _NETWORK.search(fault):
            return fault
        _say(f"git {words[0]} failed ({fault}): trying again in {pause} s")
        time.sleep(pause)
    return _try(folder, *words)


def _try(folder: str, *words: str) -> str:
    done = _git(folder, *(word for setting in _CONFIG for word in ("-c", setting)), *words)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if not _HINT.match(line)]
    return "; ".join(lines[-2:])[:500] or f"git {words[0]} ended with status {done.returncode}"


def complete(checkout: str) -> str:
    """Fetch what Git LFS keeps of a checkout and of its submodules, wherever `git lfs install` was never called.

    Args:
        checkout: its folder.
    """
    places = _git(checkout, "submodule", "foreach", "--quiet", "--recursive", "pwd").stdout.splitlines()
    for place in [checkout, *places]:
        pointers = _lfs_pointers(place)
        if not pointers or os.environ.get("GIT_LFS_SKIP_SMUDGE", "0") not in ("", "0"):
            continue
        held = f"the project keeps {len(pointers)} files in Git LFS, such as {pointers[0]}"
        if _git(place, "lfs", "version").returncode:
            return f"{held}, and there is no git-lfs on this machine: choose an image (AMI_ID) that has it"
        for command in (("lfs", "install", "--local"), ("lfs", "pull")):
            done = _git(place, *command)
            if done.returncode:
                reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
                return f"{held}, and `git {' '.join(command)}` failed: {reason}"
        left = _lfs_pointers(place)
        if left:  # as `lfs.fetchexclude` wants it
            _say(f"{len(left)} files stay pointers of Git LFS, such as {left[0]}")
    return ""


def _lfs_pointers(checkout: str) -> list[str]:
    """The files that are pointers where Git LFS would put what they point to.

    https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    files = _git(checkout, "ls-files", "-z").stdout
    answers = _git(checkout, "check-attr", "--stdin", "-z", "filter", given=files).stdout.split("\0")
    kept = [answers[at] for at in range(0, len(answers) - 2, 3) if answers[at + 2] == "lfs"]
    return [name for name in kept if _is_pointer(os.path.join(checkout, name))]


def _is_pointer(file: str) -> bool:
    try:
        with open(file, "rb") as content:
            return content.read(42) == b"version https://git-lfs.github.com/spec/v1"
    except OSError:
        return False


def _git(place: str, *arguments: str, given: str = "") -> Any:
    return subprocess.run(
        ["git", *arguments],
        cwd=place,
        env={**os.environ, **_ENVIRONMENT},
        input=given,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )


def _say(text: str) -> None:
    sys.stderr.write(f"orchestrator: {text}\n")
    sys.stderr.flush()
