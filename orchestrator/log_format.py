"""`LOG_FORMAT=json`: one JSON object a line, with the keys that Dagster's own `--log-format json` has.

`python -m orchestrator.log_format` copies lines from standard input to standard output, and makes an object of each
that is none: what a training prints, a traceback, what a library writes past all loggers.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, BinaryIO

from orchestrator.printable import printable, without_colours

OUTPUT = "output"
"""The logger of a line that no logger has written."""

OF_DAGSTER = ("dagster", "dagit", "dagster-webserver")
"""Loggers that Dagster gives handlers of its own."""

_LONGEST_LINE = 64 * 1024


class JsonFormatter(logging.Formatter):
    """Writes a record as `timestamp, level, logger, event`, and the run and step that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        meta: Mapping[str, Any] = getattr(record, "dagster_meta", None) or {}  # of what is logged in a run
        entry: dict[str, object] = {
            "timestamp": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": printable(str(meta.get("orig_message") or record.getMessage())),
        }
        entry |= {name: meta[name] for name in ("run_id", "job_name", "step_key") if meta.get(name)}
        if exception := self._exception(record, meta):
            entry["exception"] = printable(exception)
        return json.dumps(entry)

    def _exception(self, record: logging.LogRecord, meta: Mapping[str, Any]) -> str | None:
        if record.exc_info and record.exc_info[0]:
            return self.formatException(record.exc_info)
        error = getattr(getattr(meta.get("dagster_event"), "event_specific_data", None), "error", None)
        return str(error.to_string()) if error else None


def use_json(*, level: int = logging.INFO) -> None:
    """Have this process write all that it logs as JSON on standard error, uncaught errors too.

    Args:
        level: from which level on our own modules log; of others it is a warning.
    """
    formatter = JsonFormatter()
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(lambda record: not hasattr(record, "dagster_meta"))  # the run's own console has written it
    root = logging.getLogger()
    if root.handlers:
        for existing in root.handlers:
            existing.setFormatter(formatter)
    else:
        root.addHandler(handler)
    for name in OF_DAGSTER:
        logger = logging.getLogger(name)
        for existing in logger.handlers:
            existing.setFormatter(formatter)
            logger.propagate = False
    ours = logging.getLogger(__package__)
    if not ours.isEnabledFor(level):
        ours.setLevel(level)
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        logging.getLogger(__package__).critical("Ended by an error", exc_info=(kind, error, trace))


def wrapped(line: bytes) -> bytes:
    """A line as it is when it is one of ours, else as the event of one."""
    if line.startswith(b'{"') and line.rstrip().endswith(b"}"):
        try:
            if {"event", "level", "logger", "timestamp"} <= json.loads(line).keys():
                return line.rstrip() + b"\n"
        except (ValueError, RecursionError):
            pass  # text that looks like it, perhaps nested thousands deep
    text = without_colours(printable(line.decode(errors="replace"))).strip()
    if not text:
        return b""
    now = datetime.now(UTC).timestamp()
    return json.dumps({"timestamp": _iso(now), "level": "info", "logger": OUTPUT, "event": text}).encode() + b"\n"


def copy_lines(source: BinaryIO, sink: BinaryIO) -> None:
    """Copy all lines, each as JSON, until nobody writes any more."""
    while line := source.readline(_LONGEST_LINE):
        sink.write(wrapped(line))
        sink.flush()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    copy_lines(sys.stdin.buffer, sys.stdout.buffer)
