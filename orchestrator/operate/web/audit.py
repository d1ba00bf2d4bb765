"""Who logged in, launched, cancelled and changed what: one JSON object a line, in a 0600 file, and one log line."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.operate.web.caller import Caller

FILE = "audit.jsonl"
LONGEST_VALUE = 300

_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to the audit log of one installation.

    The file is opened for each line, so that it may be moved away at any time.

    Args:
        home: the DAGSTER_HOME.
    """

    def __init__(self, home: Path) -> None:
        self.file = home / FILE
        self._writing = threading.Lock()

    def write(self, caller: Caller, action: str, **details: object) -> None:
        """Add a line. A line that cannot be written is an error in the log, and stops nobody.

        Args:
            caller: who did it.
            action: what, such as `launchRun`.
            details: of what, and how it ended.
        """
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": caller.name,
            "role": caller.role.value,
            "login": caller.way.value,
            "from": caller.address,
            "action": action,
            **details,
        }
        bounded = {name: _bounded(value) for name, value in entry.items()}
        # ASCII: whatever a name holds, it neither begins a line of its own nor speaks to a terminal.
        line = json.dumps(bounded, ensure_ascii=True)
        _log.info("Audit: %s", line)
        try:
            with self._writing:
                descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                try:
                    os.write(descriptor, f"{line}\n".encode())
                finally:
                    os.close(descriptor)
        except OSError as error:
            _log.error("Cannot write the audit log %s: %s", self.file, error.strerror)


def _bounded(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key)[:LONGEST_VALUE]: _bounded(item) for key, item in list(value.items())[:50]}
    if isinstance(value, (list, tuple)):
        shown = [_bounded(item) for item in value[:50]]
        return shown if len(value) <= 50 else [*shown, f"and {len(value) - 50} more"]
    if value is None or isinstance(value, (bool, int)):
        return value
    text = str(value).replace("\x7f", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
