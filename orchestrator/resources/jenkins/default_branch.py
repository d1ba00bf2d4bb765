"""Where the HEAD of a Git remote points, asked without a login, in seconds, and seldom."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
import time

from orchestrator.resources.jenkins.remotes import without_credentials

_log = logging.getLogger(__name__)

LONGEST_SECONDS = 4.0
"""How long one question may take: a tick waits for it."""

KNOWN_SECONDS = 3600.0
"""How long an answer counts."""

UNKNOWN_SECONDS = 600.0
"""How long nobody asks again after there was no answer."""

_REMOTE = re.compile(r"(?i)(https?|ssh|git)://[^\s]+|[\w.-]+@[\w.-]+:[^\s]+")
_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "SSH_ASKPASS": "true",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=3",
    "GIT_ALLOW_PROTOCOL": "http:https:ssh:git",
    "LC_ALL": "C",
}

_answers: dict[str, tuple[float, str | None]] = {}
_lock = threading.Lock()


def default_branch(remote: str) -> str | None:
    """The branch that the HEAD of a remote names; None when it does not tell everybody at once.

    The answer, or that there was none, is kept in this process for a while.

    Args:
        remote: as MLPROJECT_URI or a branch source names it; only http(s), ssh and git are asked.
    """
    address = without_credentials(remote.partition("#")[0].strip())
    if not _REMOTE.fullmatch(address):
        return None
    with _lock:
        now = time.monotonic()
        until, branch = _answers.get(address, (0.0, None))
        if now >= until:
            branch = _ask(address)
            _answers[address] = (time.monotonic() + (KNOWN_SECONDS if branch else UNKNOWN_SECONDS), branch)
        return branch


def _ask(address: str) -> str | None:
    command = ["git", "-c", "credential.helper=", "ls-remote", "--symref", "--", address, "HEAD"]
    with tempfile.TemporaryFile() as output:
        # Into a file, and in a session of its own: Git's helpers outlive it, and hold a pipe open.
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=os.environ | _QUIET,
                start_new_session=True,
            )
        except OSError as error:
            _log.info(f"Not asked for the default branch of the remote: git cannot be started ({error})")
            return None
        try:
            process.wait(LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None
        output.seek(0)
        answer = output.read(65536).decode(errors="replace")
    head = re.match(r"ref: refs/heads/(\S+)\tHEAD\n", answer)
    return head[1] if head and process.returncode == 0 else None
