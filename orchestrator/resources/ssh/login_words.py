"""What a login on the instance said instead of running our command, and what to do about it.

A new kind of words is a line of `KNOWN`: what they hold, and the advice.
"""

from __future__ import annotations

import re

from orchestrator.printable import printable, without_colours

KNOWN = (
    (r"Please log ?in as (?:the )?(?:user )?[\"'`]?([A-Za-z_][\w.-]*)", "set SSH_USER={0}"),
    (
        r"account is (?:currently )?not available|not allow(?:ed)? (?:shell|interactive|to execute)|sftp|\bscp\b"
        r"|restricted (?:shell|account)|rssh\b",
        "this login may not run commands: set SSH_USER to one that may, such as the image's own",
    ),
    (
        r"password (?:has )?expired|change (?:your|the) password|password change required|account has expired",
        "this login is locked until its password is changed: set SSH_USER to another, or correct AMI_ID",
    ),
    (
        r"No space left on device|[Dd]isk quota exceeded|is the disk full",
        "its disk is full: raise ROOT_VOLUME_GB",
    ),
    (r"Read-only file system", "its disk is broken or mounted read-only: check the image AMI_ID"),
    (
        r"fork: |Cannot allocate memory|Cannot fork|Resource temporarily unavailable",
        "it has no memory or process left: choose a larger INSTANCE_TYPE",
    ),
    (
        r"command not found|: not found|No such file or directory",
        "the image lacks a program: it needs sh, coreutils and /proc; check AMI_ID",
    ),
)

_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in KNOWN)

_QUOTED = 300
"""Characters of each stream; what matters is said last."""


def login_words(stdout: bytes, stderr: bytes, *, stdin: bytes = b"") -> str:
    """One clause that quotes both streams.

    Args:
        stdout: what was said there.
        stderr: likewise.
        stdin: what the command was given, which is never quoted: it may hold secrets, and a login may echo it.
    """
    streams = {"stdout": _text(stdout, stdin), "stderr": _text(stderr, stdin)}
    quotes = [f"`{text[-_QUOTED:]}` on {name}" for name, text in streams.items() if text]
    return f"it said {' and '.join(quotes)}" if quotes else "it said nothing"


def login_advice(stdout: bytes, stderr: bytes) -> str | None:
    """What to do about these words; None where that is not known."""
    for text in (_text(stdout, b""), _text(stderr, b"")):
        for pattern, advice in _PATTERNS:
            if found := pattern.search(text):
                return advice.format(*found.groups())
    return None


def _text(said: bytes, stdin: bytes) -> str:
    given = {line.strip() for line in stdin.splitlines()}
    lines = [line.strip() for line in said.splitlines() if line.strip() and line.strip() not in given]
    return " ".join(without_colours(printable(line.decode(errors="replace"))).strip() for line in lines)
