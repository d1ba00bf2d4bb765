"""The program that deploys on an inference host, whose Python may be 3.8: three files here, one text there."""

from __future__ import annotations

import functools
import re
from pathlib import Path

__all__ = ["agent_source"]

_PARTS = ("haproxy.py", "slots.py", "deploying.py")
_AMONG_THEM = re.compile(r"^from (?:orchestrator|__future__)[^\n(]*(?:\([^)]*\))?[^\n]*\n", re.MULTILINE)


@functools.lru_cache(maxsize=1)
def agent_source() -> bytes:
    """The whole program, which needs nothing but Python."""
    texts = [(Path(__file__).parent / name).read_text() for name in _PARTS]
    return "\n".join(["from __future__ import annotations", *(_AMONG_THEM.sub("", text) for text in texts)]).encode()
